"""Jobs beyond the main tables: how many soft tokens, layers, sensitivity, ablation, universal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentwire.baseline.probe import Scaler, choose_logistic, mean_pooled
from agentwire.bridge.problem import BridgeProblem, Part, scores_of
from agentwire.bridge.resampler import Resampler
from agentwire.bridge.states import StateCache
from agentwire.bridge.trainer import Trained, train_many
from agentwire.errors import BridgeError
from agentwire.task.passkey import DIGITS
from lab.bridges import (
    BASE,
    CHANGES,
    Answer,
    Member,
    chosen,
    exact_scores,
    labels_of,
    member_of,
    new_bridge,
    note,
    quickened,
    right,
    score_bridges,
    train_stack,
)
from lab.files import Folder
from lab.jobs import ALL_LAYERS, BASE_LAYER, SEEDS, TASKS, Job
from lab.scored import run_entry
from lab.ship import write_bridge
from lab.world import World

PAPERS_BUDGET = {"steps": 3000, "batch_size": 8, "learning_rate": 1e-4, "average": 0.99,
                 "evaluate_every": 500}  # fmt: skip
"""Telepathy's setting for Banking77: rate 1e-4, batch 8, 3,000 steps (its M there is 16)."""
RATES = (5e-4, 2e-3)
UNSEEN = ("emotion", "subj")


def soft_tokens(world: World, job: Job, folder: Folder) -> Answer:
    """One M: at the papers' budget (three seeds), and longer at the rate that suits it best."""
    m, (layer, _) = job.options["soft_tokens"], chosen(folder, job)
    short = BASE.model_copy(update=PAPERS_BUDGET)
    members = [member_of("papers", layer, short, {"seed": seed}, soft_tokens=m) for seed in SEEDS]
    done = train_stack(world, job, members)
    runs, predictions = score_bridges(
        world, job, list(zip(members, done, strict=True)), f"papers.m{m}", 1, budget="papers"
    )
    long = BASE.model_copy(update={**CHANGES, "steps": 2000, "batch_size": 32})
    members = [
        member_of(f"rate{rate}", layer, long, {"learning_rate": rate}, soft_tokens=m)
        for rate in RATES
    ]
    tried = train_stack(world, job, members)
    notes = [note(one, d) for one, d in zip(members, tried, strict=True)]
    best = max(range(len(RATES)), key=lambda i: notes[i].get("held_out_accuracy", 0.0))
    more, extra = score_bridges(
        world, job, [(members[best], tried[best])], f"converged.m{m}", len(RATES),
        budget="converged",
    )  # fmt: skip
    return {"studies": {"soft_tokens": runs + more}, "members": notes}, predictions | extra


def layers(world: World, job: Job, folder: Folder) -> Answer:
    """Bridges and mean-pooled probes on many layers, on held-out rows."""
    base = BASE.model_copy(update={"steps": 500, "average": 0.99})
    members = [member_of(f"layer{n}", n, base, {}) for n in ALL_LAYERS[job.direction]]
    done = train_stack(world, job, members)
    found = []
    for member, trained in zip(members, done, strict=True):
        caches = [world.states(job.direction, job.task, member.layer, part)
                  for part in ("train", "held_out")]  # fmt: skip
        scaler = Scaler.of(caches[0])
        features = [mean_pooled(cache, scaler) for cache in caches]
        probe = choose_logistic(features[0], caches[0].labels, features[1], caches[1].labels,
                                world.rows(job.task).classes)  # fmt: skip
        entry = note(member, trained)
        found.append({"task": job.task, "direction": job.direction, **entry,
                      "probe_mean_held_out": probe.held_out_accuracy})  # fmt: skip
    return {"studies": {"layers": found}}, {}


def sensitivity(world: World, job: Job, folder: Folder) -> Answer:
    """One setting at a time away from the base, on held-out rows."""
    layer, _ = chosen(folder, job)
    base = BASE.model_copy(update={"steps": 1000})
    factors: list[tuple[str, Any]] = [("learning_rate", r) for r in (1e-5, 1e-4, 5e-4, 2e-3, 5e-3)]
    factors += [("batch_size", n) for n in (8, 16, 128)]
    factors += [("diversity", w) for w in (0.1, 1.0)]
    members = [member_of(f"{k}={v}", layer, base, {k: v}) for k, v in factors]
    members.append(
        member_of("diversity=0.1 entropy", layer, base,
                  {"diversity": 0.1, "diversity_form": "entropy"})
    )  # fmt: skip
    done = train_stack(world, job, members)
    found = [{"task": job.task, "direction": job.direction, **note(m, d)}
             for m, d in zip(members, done, strict=True)]  # fmt: skip
    return {"studies": {"sensitivity": found}}, {}


class Unstandardised(Resampler):
    """A bridge without z-scores (ablation)."""

    def standardise(self, states: Tensor) -> Tensor:
        return states.to(self.mean.dtype)


class Unclamped(Resampler):
    """A bridge whose z-scores are not cut (ablation)."""

    def standardise(self, states: Tensor) -> Tensor:
        return (states.to(self.mean.dtype) - self.mean) / self.std


def ablation(world: World, job: Job, folder: Folder) -> Answer:
    """What made the reverse direction learn: one thing off at a time, held-out rows, one seed."""
    layer, _ = chosen(folder, job)
    base = BASE.model_copy(update={"steps": 750})
    off: dict[str, dict[str, Any]] = {
        "all on": {},
        "no averaging": {"average": 0.0},
        "no token dropout": {"token_dropout": 0.0},
        "rate 1e-4": {"learning_rate": 1e-4},
        "no opening token": {},
        "no standardisation": {},
        "no clamp": {},
        "no opening token, no standardisation, no clamp": {},
        "no opening token, no clamp": {},
    }
    members = [
        member_of(name, layer, base, changes, opening="no opening" not in name, kind=_kind_of(name))
        for name, changes in off.items()
    ]
    done = train_stack(world, job, members)
    found = [
        {"task": job.task, "direction": job.direction, **note(member, trained)}
        for member, trained in zip(members, done, strict=True)
    ]
    return {"studies": {"ablation": found}}, {}


def _kind_of(name: str) -> type[Resampler]:
    """The module of an ablation; z-scores that are not made need not be cut either."""
    if "no standardisation" in name:
        return Unstandardised
    return Unclamped if "no clamp" in name else Resampler


def universal(world: World, job: Job, folder: Folder) -> Answer:
    """One bridge for four tasks: the prompt is the receiver's; then a task it never saw."""
    layer = BASE_LAYER[job.direction]
    base = BASE.model_copy(update={**CHANGES, "steps": 2000, "batch_size": 48})
    members = [member_of("universal", layer, base, {"seed": seed}) for seed in SEEDS[:1]]
    recipes = [quickened(world, member.recipe) for member in members]
    receiver = world.model(world.names(job.direction)[1], world.half)
    parts = []
    for task in TASKS:
        spec = world.rows(task).spec
        receiver.prepare(spec)
        caches = [[world.states(job.direction, task, layer, part)] * len(members)
                  for part in ("train", "held_out")]  # fmt: skip
        parts.append(Part(_asked(receiver, spec), caches[0], caches[1]))
    joined = _statistics(world, job, layer)
    modules = [new_bridge(world, job.direction, joined, member) for member in members]
    torch.set_float32_matmul_precision("high")
    try:
        done = train_many(BridgeProblem(modules, parts, recipes), recipes, stop=world.out_of_time)
    finally:
        torch.set_float32_matmul_precision("highest")
    runs: list[dict[str, Any]] = []
    predictions = {}
    for member, trained in zip(members, done, strict=True):
        if isinstance(trained, BridgeError):
            continue
        for task in (*TASKS, *UNSEEN):
            logits = exact_scores(world, job, [trained.module], [member], "test", task)[0]
            held = exact_scores(world, job, [trained.module], [member], "held_out", task)[0]
            predicted, labels = logits.argmax(-1), labels_of(world, task, "test")
            entry = run_entry(job, "universal", device=world.device, seed=member.recipe.seed,
                              predicted=predicted, labels=labels,
                              held_out=right(world, job, held, "held_out", task),
                              seconds=trained.seconds, layer=layer, seen=task in TASKS)  # fmt: skip
            runs.append({**entry, "task": task})
            predictions[f"universal.{task}.seed{member.recipe.seed}"] = predicted.cpu().numpy()
        runs.append(emotion_as_sentiment(world, job, trained.module, member))
    alive = [(m, t) for m, t in zip(members, done, strict=True) if isinstance(t, Trained)]
    if alive:
        member, trained = max(alive, key=lambda pair: pair[1].best.accuracy)
        sender, receiver_name = world.names(job.direction)
        target = folder.path / "bridges" / f"{sender}--{receiver_name}--universal"
        write_bridge(world, job, target, member, trained, trained.best.accuracy, ("any",),
                     dataset="+".join(TASKS))  # fmt: skip
    notes = [note(m, d) for m, d in zip(members, done, strict=True)]
    return {"studies": {"universal": runs}, "members": notes}, predictions


def emotion_as_sentiment(world: World, job: Job, module: Any, member: Member) -> dict[str, Any]:
    """Messages with an emotion, asked with SST-2's prompt: joy and love are positive; sadness,
    anger and fear negative; surprise, which may be either, is left out."""
    names = world.rows("emotion").labels
    sign = {"joy": 1, "love": 1, "sadness": 0, "anger": 0, "fear": 0}
    signs = torch.tensor([sign.get(name, -1) for name in names], device=world.device)
    wanted = signs[labels_of(world, "emotion", "test")]
    exact = world.model(world.names(job.direction)[1])
    cache = world.states(job.direction, "emotion", member.layer, "test")
    logits = scores_of([module], _asked(exact, world.rows("sst2").spec), [cache], 512)[0]
    kept = wanted >= 0
    predicted, seed = logits.argmax(-1)[kept], member.recipe.seed
    entry = run_entry(job, "universal", device=world.device, seed=seed, predicted=predicted,
                      labels=wanted[kept], seen=False)  # fmt: skip
    return {**entry, "task": "emotion_as_sentiment"}


def _asked(receiver: Any, spec: Any) -> Any:
    return lambda soft: receiver.logits_from_soft(soft, spec)


def _statistics(world: World, job: Job, layer: int) -> StateCache:
    """States of as many tokens of each task, for statistics that no task decides alone."""
    caches = [world.states(job.direction, task, layer, "train") for task in TASKS]
    size = min(cache.flat.shape[0] for cache in caches)
    flat = torch.cat([cache.flat[:: cache.flat.shape[0] // size][:size] for cache in caches])
    first = caches[0]
    return StateCache(flat, first.offsets, first.lengths, first.labels)


def passkey(world: World, job: Job, folder: Folder) -> Answer:
    """Five digits through M soft tokens, asked one at a time; the five tasks share their texts."""
    m, layer = job.options["soft_tokens"], BASE_LAYER[job.direction]
    tasks = [f"passkey_{place}" for place in range(1, DIGITS + 1)]
    receiver = world.model(world.names(job.direction)[1], world.half)
    exact = world.model(world.names(job.direction)[1])

    def cached(task: str, part: str) -> StateCache:
        first = world.states(job.direction, tasks[0], layer, part)
        labels = labels_of(world, task, part)
        return StateCache(first.flat, first.offsets, first.lengths, labels)

    base = BASE.model_copy(
        update={"steps": 2000, "batch_size": 32, "evaluate_every": 250,
                "learning_rate": 1e-3}
    )  # fmt: skip
    seeds = SEEDS[:1]
    members = [member_of("passkey", layer, base, {"seed": s}, soft_tokens=m) for s in seeds]
    recipes = [quickened(world, member.recipe) for member in members]
    parts = []
    for task in tasks:
        spec = world.rows(task).spec
        receiver.prepare(spec)
        caches = [[cached(task, part)] * len(seeds) for part in ("train", "held_out")]
        parts.append(Part(_asked(receiver, spec), caches[0], caches[1]))
    modules = [new_bridge(world, job.direction, parts[0].cache[0], member) for member in members]
    torch.set_float32_matmul_precision("high")
    try:
        done = train_many(BridgeProblem(modules, parts, recipes), recipes, stop=world.out_of_time)
    finally:
        torch.set_float32_matmul_precision("highest")
    runs = []
    for member, trained in zip(members, done, strict=True):
        if isinstance(trained, BridgeError):
            continue
        hits = torch.stack([
            scores_of([trained.module], _asked(exact, world.rows(task).spec),
                      [cached(task, "test")], 512)[0].argmax(-1) == labels_of(world, task, "test")
            for task in tasks
        ])  # fmt: skip
        runs.append({
            "soft_tokens": m, "seed": member.recipe.seed, "layer": layer, "n": hits.shape[1],
            "direction": job.direction, "digit_accuracy": float(hits.double().mean()),
            "by_place": [float(x) for x in hits.double().mean(dim=1)],
            "exact_match": float(hits.all(dim=0).double().mean()),
            "held_out_accuracy": trained.best.accuracy, "seconds": round(trained.seconds, 1),
            "hyperparameters": recipes[0].model_dump(), "test_scorings": 1,
        })  # fmt: skip
    notes = [note(one, d) for one, d in zip(members, done, strict=True)]
    return {"studies": {"passkey": runs}, "members": notes}, {}
