"""One bridge for several tasks: the universal bridge, and the digits of a passkey."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from agentwire.bridge.resampler import Resampler
from agentwire.errors import BridgeError
from agentwire.task.passkey import DIGITS, SERIES
from agentwire.training.baselines.probe import choose_logistic
from agentwire.training.loop import Trained, train_many
from agentwire.training.objective import Part, scores_of
from agentwire.training.states import StateCache, evenly
from lab.bridges import (
    BASE,
    CHANGES,
    Answer,
    exact_scores,
    fast_products,
    labels_of,
    member_of,
    new_bridge,
    note,
    quickened,
    right,
)
from lab.files import Folder, Predictions
from lab.jobs import BASE_LAYER, SEEDS, TASKS, Job
from lab.member import Member
from lab.onepass import OnePass
from lab.rivals import answers, texts_of
from lab.scored import run_entry
from lab.ship import bridge_folder_name, world_hash, write_bridge
from lab.world import World

UNSEEN = ("emotion", "subj")
SIGN = {"joy": 1, "love": 1, "sadness": 0, "anger": 0, "fear": 0}
"""Emotions as SST-2's classes; surprise, which may be either, is left out."""
UNIVERSAL = {**CHANGES, "steps": 1500, "batch_size": 64}
"""So each task gets what its own bridge got (Banking77: 1,500 of 2,000 steps)."""
PASSKEY = {"steps": 3000, "batch_size": 32, "evaluate_every": 500, "token_dropout": 0.0,
           "dropout": 0.0, "average": 0.99}  # fmt: skip
"""Every token matters here: none is hidden."""
Done = list[tuple[Member, Trained | BridgeError]]


def train_together(
    world: World, job: Job, members: Sequence[Member], tasks: Sequence[str],
    caches: dict[str, list[StateCache]], statistics: StateCache, *, same_rows: bool = False,
) -> Done:  # fmt: skip
    """Trains bridges side by side on several tasks at once.

    Args:
        caches: training and held-out states of each task.
        statistics: states whose mean and deviation standardise what the bridges read.
        same_rows: the tasks ask about the same texts.
    """
    receiver = world.model(world.names(job.direction)[1], world.half)
    recipes = [quickened(world, member.recipe) for member in members]
    specs = [world.rows(task).spec for task in tasks]
    parts = []
    for task, spec in zip(tasks, specs, strict=True):
        receiver.prepare(spec)
        train, held_out = caches[task]
        parts.append(Part(_asked(receiver, spec), [train] * len(members),
                          [held_out] * len(members)))  # fmt: skip
    modules = [new_bridge(world, job.direction, statistics, member) for member in members]
    problem = OnePass(modules, parts, recipes, receiver, specs, same_rows=same_rows)
    with fast_products():
        done = train_many(problem, recipes, stop=world.out_of_time)
    return list(zip(members, done, strict=True))


def _asked(receiver: Any, spec: Any) -> Any:
    return lambda soft: receiver.logits_from_soft(soft, spec)


def _notes(done: Done) -> list[dict[str, Any]]:
    found = []
    for member, trained in done:
        entry = note(member, trained)
        if isinstance(trained, Trained):
            entry["parts"] = [round(x, 4) for x in trained.best.parts]
        found.append(entry)
    return found


# -- universal ------------------------------------------------------------------------------------


def universal(world: World, job: Job, folder: Folder) -> Answer:
    """One bridge for four tasks: the prompt is the receiver's; then tasks it never saw."""
    layer = BASE_LAYER[job.direction]
    base = BASE.model_copy(update=UNIVERSAL)
    members = [member_of("universal", layer, base, {"seed": seed}) for seed in SEEDS]
    caches = {
        task: [world.states(job.direction, task, layer, part) for part in ("train", "held_out")]
        for task in TASKS
    }
    statistics = evenly([caches[task][0] for task in TASKS])
    done = train_together(world, job, members, TASKS, caches, statistics)
    alive = [(m, t) for m, t in done if isinstance(t, Trained)]
    if alive:
        member, trained = max(alive, key=lambda pair: pair[1].best.rank)
        target = folder.path / "bridges" / bridge_folder_name(world, job.direction, "universal")
        write_bridge(world, job, target, member, trained, trained.best.accuracy, ("any",), TASKS)
    runs: list[dict[str, Any]] = []
    predictions: Predictions = {}
    for member, trained in alive:
        for task in (*TASKS, *UNSEEN):
            entry, predicted = _universal_run(world, job, member, trained, task)
            runs.append(entry)
            predictions[f"universal.{task}.seed{member.recipe.seed}"] = predicted.cpu().numpy()
        runs.append(emotion_as_sentiment(world, job, trained.module, member))
    beside = {task: _beside(world, job, task, layer) for task in UNSEEN}
    beside["emotion_as_sentiment"] = _beside_signs(world, job)
    for run in runs:
        run |= beside.get(run["task"], {})
    return {"studies": {"universal": runs}, "members": _notes(done)}, predictions


def _universal_run(
    world: World, job: Job, member: Member, trained: Trained, task: str
) -> tuple[dict[str, Any], Tensor]:
    modules = [trained.module]
    predicted = exact_scores(world, job, modules, [member], "test", task)[0].argmax(-1)
    held = exact_scores(world, job, modules, [member], "held_out", task)[0]
    entry = run_entry(
        job, "universal", device=world.device, seed=member.recipe.seed, predicted=predicted,
        labels=labels_of(world, task, "test"), held_out=right(world, job, held, "held_out", task),
        seconds=trained.seconds, layer=member.layer, seen=task in TASKS, step=trained.best.step,
        hyperparameters=quickened(world, member.recipe).model_dump(), chosen_from=1,
        parameters=sum(p.numel() for p in trained.module.parameters()),
    )  # fmt: skip
    if task not in TASKS and member.recipe.seed == SEEDS[0]:
        entry["payload_probe"] = payload_probe(world, job, trained.module, member, task)
    return {**entry, "task": task}, predicted


@torch.inference_mode()
def _payloads(module: Any, cache: StateCache) -> Tensor:
    """Payloads [n, M * d] of all texts."""
    found = []
    for rows in torch.arange(len(cache), device=cache.flat.device).split(512):  # type: ignore[no-untyped-call]
        states, mask = cache.gather(rows, int(cache.lengths[rows].max()))
        found.append(module(states, mask).half().float().flatten(1))
    return torch.cat(found)


def payload_probe(world: World, job: Job, module: Any, member: Member, task: str) -> float:
    """Test accuracy of logistic regression on the payloads of a task that the bridge never saw:
    what they hold of it, whether or not the receiver can say it."""
    caches = [world.states(job.direction, task, member.layer, part)
              for part in ("train", "held_out", "test")]  # fmt: skip
    features = [_payloads(module, cache).clone() for cache in caches]  # no inference tensors
    best = choose_logistic(features[0], caches[0].labels, features[1], caches[1].labels,
                           world.rows(task).classes)  # fmt: skip
    return _share(best.probe(features[2]).argmax(-1) == caches[2].labels)


def _beside(world: World, job: Job, task: str, layer: int) -> dict[str, float]:
    """What an unseen task's figure is to be read beside."""
    labels, spec = labels_of(world, task, "test"), world.rows(task).spec
    receiver = world.model(world.names(job.direction)[1])
    read = answers(receiver, spec, texts_of(world, task, "test")).argmax(-1)
    return {"receiver_direct": _share(read == labels), "majority": _majority(labels)}


def _beside_signs(world: World, job: Job) -> dict[str, float]:
    wanted = _signs(world)
    receiver = world.model(world.names(job.direction)[1])
    texts = texts_of(world, "emotion", "test")
    read = answers(receiver, world.rows("sst2").spec, texts).argmax(-1)
    kept = wanted >= 0
    return {"receiver_direct": _share(read[kept] == wanted[kept]),
            "majority": _majority(wanted[kept])}  # fmt: skip


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _majority(labels: Tensor) -> float:
    counts = torch.bincount(labels)
    return float(counts.max() / counts.sum())


def _signs(world: World) -> Tensor:
    """SST-2's class of each test row of ``emotion``; -1: neither."""
    signs = [SIGN.get(name, -1) for name in world.rows("emotion").labels]
    return torch.tensor(signs, device=world.device)[labels_of(world, "emotion", "test")]


def emotion_as_sentiment(world: World, job: Job, module: Any, member: Member) -> dict[str, Any]:
    """Messages with an emotion, asked with SST-2's prompt."""
    wanted = _signs(world)
    exact = world.model(world.names(job.direction)[1])
    cache = world.states(job.direction, "emotion", member.layer, "test")
    logits = scores_of([module], _asked(exact, world.rows("sst2").spec), [cache], 512)[0]
    kept = wanted >= 0
    entry = run_entry(job, "universal", device=world.device, seed=member.recipe.seed,
                      predicted=logits.argmax(-1)[kept], labels=wanted[kept], layer=member.layer,
                      seen=False)  # fmt: skip
    return {**entry, "task": "emotion_as_sentiment"}


# -- passkey --------------------------------------------------------------------------------------


def passkey(world: World, job: Job, folder: Folder) -> Answer:
    """Five digits through M soft tokens, asked one at a time; the five tasks share their texts.

    Of several rates the one with the best held-out mean over its seeds is scored.
    """
    m, layer = job.options["soft_tokens"], BASE_LAYER[job.direction]
    tasks = [f"{SERIES}_{place}" for place in range(1, DIGITS + 1)]

    def cached(task: str, part: str) -> StateCache:
        first = world.states(job.direction, tasks[0], layer, part)
        labels = labels_of(world, task, part)
        return StateCache(first.flat, first.offsets, first.lengths, labels)

    base = BASE.model_copy(update={**PASSKEY, **job.options.get("recipe", {})})
    members = [
        member_of(f"m{m} rate {rate:g}", layer, base, {"learning_rate": rate, "seed": seed},
                  soft_tokens=m)
        for rate, seed in job.options["runs"]
    ]  # fmt: skip
    caches = {task: [cached(task, part) for part in ("train", "held_out")] for task in tasks}
    done = train_together(world, job, members, tasks, caches, caches[tasks[0]][0], same_rows=True)
    alive = [(m, t) for m, t in done if isinstance(t, Trained)]
    rate = _best_rate(alive)
    final = [(m, t) for m, t in alive if m.recipe.learning_rate == rate]
    runs, hits = [], {}
    for member, trained in final:
        seed = member.recipe.seed
        hits[seed] = _digits_right(world, job, trained.module,
                                   {task: cached(task, "test") for task in tasks})  # fmt: skip
        runs.append({
            "soft_tokens": m, "seed": seed, "layer": layer, "n": hits[seed].shape[1],
            "direction": job.direction, "digit_accuracy": float(hits[seed].double().mean()),
            "by_place": [float(x) for x in hits[seed].double().mean(dim=1)],
            "exact_match": float(hits[seed].all(dim=0).double().mean()),
            "held_out_accuracy": trained.best.accuracy, "step": trained.best.step,
            "steps_done": trained.history[-1].step, "seconds": round(trained.seconds, 1),
            "hyperparameters": quickened(world, member.recipe).model_dump(),
            "chosen_from": len({rate for rate, _ in job.options["runs"]}), "test_scorings": 1,
        })  # fmt: skip
    if final:
        member, trained = max(final, key=lambda pair: pair[1].best.rank)
        name = bridge_folder_name(world, job.direction, SERIES) + ("" if m == 16 else f"--m{m}")
        prompts = tuple(world_hash(world, task) for task in tasks)
        write_bridge(world, job, folder.path / "bridges" / name, member, trained,
                     trained.best.accuracy, prompts, tasks[:1], SERIES)  # fmt: skip
    predictions = {f"passkey.m{m}.seed{seed}": found.cpu().numpy() for seed, found in hits.items()}
    return {"studies": {"passkey": runs}, "members": _notes(done)}, predictions


def _best_rate(alive: Sequence[tuple[Member, Trained]]) -> float:
    """The learning rate with the best held-out mean over its seeds."""
    by_rate: dict[float, list[float]] = {}
    for member, trained in alive:
        by_rate.setdefault(member.recipe.learning_rate, []).append(trained.best.accuracy)
    return max(by_rate, key=lambda rate: fmean(by_rate[rate]), default=0.0)


def _digits_right(world: World, job: Job, module: Any, caches: dict[str, StateCache]) -> Tensor:
    """Whether each digit [places, n] of the test rows is right, in float32."""
    exact = world.model(world.names(job.direction)[1])
    if not isinstance(module, Resampler):
        raise TypeError("not a bridge")
    found = []
    for task, cache in caches.items():
        logits = scores_of([module], _asked(exact, world.rows(task).spec), [cache], 512)[0]
        found.append(logits.argmax(-1) == labels_of(world, task, "test"))
    return torch.stack(found)
