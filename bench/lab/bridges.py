"""Jobs that train bridges: sweeps on held-out rows, the bridges that are scored, controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from agentwire.bridge.resampler import Resampler, ResamplerShape
from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import Part, scores_of
from lab.files import Folder, Predictions
from lab.jobs import BASE_LAYER, LAYERS, SEEDS, Job
from lab.member import Member
from lab.onepass import OnePass
from lab.scored import run_entry
from lab.ship import save_bridge
from lab.world import World

BASE = TrainSpec(
    steps=1500, batch_size=64, average=0.995, held_out=1000, evaluate_every=250,
    max_text_tokens=128,
)  # fmt: skip
STEPS = {"sst2": 1500, "ag_news": 1500, "trec": 1500, "banking77": 2000, "movie_snippets": 1500}
TRIED_LAYERS = {"ag_news.forward": (15, 20)}
"""Layers that the bridge job itself chooses from, where no sweep did."""
SWEEP_STEPS = 1500
FACTORS: dict[str, dict[str, Any]] = {
    "learning_rate": {"learning_rate": 1e-3},
    "token_dropout": {"token_dropout": 0.3},
    "dropout": {"dropout": 0.3},
    "label_smoothing": {"label_smoothing": 0.1},
    "weight_decay": {"weight_decay": 0.1},
}
CHANGES = {"dropout": 0.2, "token_dropout": 0.2, "weight_decay": 0.1}
"""Taken up for every bridge: each gained on held-out rows in the whole sweep (sst2, reverse)."""
WORTH = 0.002
"""A factor is taken up where it gains more than this on held-out rows."""
Answer = tuple[dict[str, Any], Predictions]


def quickened(world: World, recipe: TrainSpec) -> TrainSpec:
    """The recipe, or a rehearsal of it."""
    if not world.quick:
        return recipe
    return recipe.model_copy(update={"steps": 2, "evaluate_every": 1, "batch_size": 4})


def new_bridge(world: World, direction: str, cache: Any, member: Member) -> Resampler:
    """An untrained bridge with the states' statistics and the receiver's scale."""
    sender, receiver = (world.model(name) for name in world.names(direction))
    recipe = member.recipe
    torch.manual_seed(recipe.seed)
    shape = ResamplerShape(
        sender_width=sender.identity.width,
        width=receiver.identity.width,
        soft_tokens=member.soft_tokens,
        hidden=recipe.hidden,
        blocks=recipe.blocks,
        heads=recipe.heads,
        feed_forward=recipe.feed_forward,
    )
    module = member.kind(shape, dropout=recipe.dropout).to(world.device)
    mean, std = cache.statistics()
    module.mean.copy_(mean)
    module.std.copy_(std)
    module.alpha.fill_(receiver.identity.embedding_rms)
    return module


def train_stack(
    world: World, job: Job, members: Sequence[Member], task: str | None = None
) -> list[Trained | BridgeError]:
    """Trains bridges side by side on one task."""
    task = task or job.task
    recipes = [quickened(world, member.recipe) for member in members]

    def caches(part: str) -> list[Any]:
        return [
            world.states(job.direction, task, m.layer, part, random=m.random, opening=m.opening,
                         most=m.rows)
            for m in members
        ]  # fmt: skip

    train, held_out = caches("train"), caches("held_out")
    modules = [new_bridge(world, job.direction, c, m) for c, m in zip(train, members, strict=True)]
    receiver = world.model(world.names(job.direction)[1], world.half)
    spec = world.rows(task).spec
    receiver.prepare(spec)
    part = Part(lambda soft: receiver.logits_from_soft(soft, spec), train, held_out)
    problem = OnePass(modules, [part], recipes, receiver, [spec])
    with fast_products():
        return train_many(problem, recipes, stop=world.out_of_time)


@contextmanager
def fast_products() -> Iterator[None]:
    """Float32 matrix products in TF32, for training alone: figures that count are exact."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def exact_scores(
    world: World, job: Job, modules: Sequence[Any], members: Sequence[Member], part: str,
    task: str | None = None,
) -> list[Tensor]:  # fmt: skip
    """Label logits of a part of the rows in float32: the figures that count."""
    task = task or job.task
    receiver = world.model(world.names(job.direction)[1])
    spec = world.rows(task).spec
    found = []
    for module, m in zip(modules, members, strict=True):
        cache = world.states(job.direction, task, m.layer, part, random=m.random, opening=m.opening)
        logits = scores_of([module], lambda z: receiver.logits_from_soft(z, spec), [cache], 512)
        found.append(logits[0])
    return found


def right(world: World, job: Job, logits: Tensor, part: str, task: str | None = None) -> float:
    labels = labels_of(world, task or job.task, part)
    return float((logits.argmax(-1) == labels).double().mean().item())


def labels_of(world: World, task: str, part: str) -> Tensor:
    """Class ids of a part of a task's rows."""
    rows = world.rows(task).part(part).rows
    return torch.tensor([row.label for row in rows], device=world.device)


def curve(history: Sequence[Evaluation]) -> list[list[float]]:
    """Step, training loss, held-out loss and accuracy of every evaluation."""
    return [[e.step, round(e.train_loss, 4), round(e.loss, 4), round(e.accuracy, 4)]
            for e in history]  # fmt: skip


def note(member: Member, done: Trained | BridgeError) -> dict[str, Any]:
    """A member of a sweep as the record shows it."""
    about = {"name": member.name, "layer": member.layer, "soft_tokens": member.soft_tokens,
             "seed": member.recipe.seed, "changes": member.changes}  # fmt: skip
    if isinstance(done, BridgeError):
        return {**about, "failed": done.message}
    return {**about, "held_out_accuracy": done.best.accuracy, "loss": round(done.best.loss, 4),
            "step": done.best.step, "seconds": round(done.seconds, 1),
            "curve": curve(done.history)}  # fmt: skip


def member_of(
    name: str, layer: int, recipe: TrainSpec, changes: dict[str, Any], **more: Any
) -> Member:
    """A member whose recipe differs by ``changes``."""
    return Member(recipe.model_copy(update=changes), layer, name=name, changes=changes, **more)


def sweep(world: World, job: Job, folder: Folder) -> Answer:
    """Layers, and one factor off at a time, on held-out rows."""
    base = BASE.model_copy(update={"steps": SWEEP_STEPS})
    first = BASE_LAYER[job.direction]
    members = [member_of(f"layer{layer}", layer, base, {}) for layer in LAYERS[job.direction]]
    members += [member_of(name, first, base, changes) for name, changes in FACTORS.items()]
    done = train_stack(world, job, members)
    notes = [note(m, d) for m, d in zip(members, done, strict=True)]
    known = [n for n in notes if "held_out_accuracy" in n]
    layers = [n for n in known if n["name"].startswith("layer") and not n["changes"]]
    best = max(layers, key=lambda n: (n["held_out_accuracy"], -n["loss"]))
    reference = next(n for n in layers if n["layer"] == first)["held_out_accuracy"]
    changes: dict[str, Any] = {}
    for found in known:
        if found["changes"] and found["held_out_accuracy"] > reference + WORTH:
            changes |= found["changes"]
    return {"members": notes, "layer": best["layer"], "changes": changes}, {}


def chosen(folder: Folder, job: Job) -> tuple[int, dict[str, Any]]:
    """Layer and changes of the bridge, or of its sweep; those of the one whole sweep otherwise."""
    pair = job.options.get("sweep", f"{job.task}.{job.direction}")
    for name in (f"bridge.{pair}", f"sweep.{pair}"):
        found = folder.result(name)
        if found is not None and "layer" in found:
            return int(found["layer"]), dict(found.get("changes", {}))
    return BASE_LAYER[job.direction], dict(CHANGES)


def recipe_of(task: str, changes: dict[str, Any]) -> TrainSpec:
    """What a bridge of this task trains with."""
    values = {"steps": STEPS[task], **changes}
    return BASE.model_copy(update=values)


def bridge(world: World, job: Job, folder: Folder) -> Answer:
    """Three seeds; of several layers, the one with the best held-out mean is scored."""
    layer, changes = chosen(folder, job)
    layers = TRIED_LAYERS.get(f"{job.task}.{job.direction}", (layer,))
    base = recipe_of(job.task, changes)
    members = [
        member_of(f"layer{one}", one, base, {"seed": seed}) for one in layers for seed in SEEDS
    ]
    done = train_stack(world, job, members)
    notes = [note(m, d) for m, d in zip(members, done, strict=True)]

    def mean(one: int) -> float:
        mine = [n.get("held_out_accuracy", 0.0) for n in notes if n["layer"] == one]
        return float(sum(mine) / len(mine))

    layer = max(layers, key=mean)
    final = [(m, d) for m, d in zip(members, done, strict=True) if m.layer == layer]
    runs, predictions = score_bridges(world, job, final, "bridge", len(members))
    save_bridge(world, job, folder, final, runs)
    controls, more = payload_controls(world, job, final, predictions)
    result = {"members": notes, "layer": layer, "changes": changes, "runs": runs + controls}
    return result, predictions | more


def score_bridges(
    world: World, job: Job, final: Sequence[tuple[Member, Trained | BridgeError]], method: str,
    tried: int, **more: Any,
) -> tuple[list[dict[str, Any]], Predictions]:  # fmt: skip
    """Test figures of trained bridges, each scored once."""
    runs, predictions = [], {}
    labels = labels_of(world, job.task, "test")
    for member, trained in final:
        if isinstance(trained, BridgeError):
            continue
        module, seed = trained.module, member.recipe.seed
        held = exact_scores(world, job, [module], [member], "held_out")[0]
        logits = exact_scores(world, job, [module], [member], "test")[0]
        predicted = logits.argmax(-1)
        runs.append(
            run_entry(
                job, method, device=world.device, seed=seed, predicted=predicted, labels=labels,
                held_out=right(world, job, held, "held_out"), seconds=trained.seconds,
                layer=member.layer, soft_tokens=member.soft_tokens, step=trained.best.step,
                steps_done=trained.history[-1].step, train_loss=trained.history[-1].train_loss,
                parameters=sum(p.numel() for p in module.parameters()),
                hyperparameters=quickened(world, member.recipe).model_dump(), chosen_from=tried,
                **more,
            )
        )  # fmt: skip
        predictions[f"{method}.seed{seed}"] = predicted.cpu().numpy()
    return runs, predictions


@torch.inference_mode()
def payload_controls(
    world: World, job: Job, final: Sequence[tuple[Member, Trained | BridgeError]],
    scored: Predictions,
) -> tuple[list[dict[str, Any]], Predictions]:  # fmt: skip
    """The same bridges with payloads of zeros, and with every row's payload given to another."""
    receiver = world.model(world.names(job.direction)[1])
    spec = world.rows(job.task).spec
    labels = labels_of(world, job.task, "test")
    answers: dict[tuple[str, int], Tensor] = {}
    for member, _ in final:
        seed = member.recipe.seed
        if f"bridge.seed{seed}" not in scored:
            continue
        # A payload is answered alone, whatever row it belongs to: to shuffle payloads is to
        # shuffle answers.
        real = torch.from_numpy(scored[f"bridge.seed{seed}"]).to(labels)
        others = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        answers["shuffled_payload", seed] = real[others.to(world.device)]
    zero = torch.zeros(1, final[0][0].soft_tokens, receiver.identity.width, device=world.device)
    answer = receiver.logits_from_soft(zero, spec).argmax(-1)
    answers["zero_payload", 0] = answer.expand(len(labels))
    runs, predictions = [], {}
    for (method, seed), predicted in answers.items():
        runs.append(run_entry(job, method, device=world.device, seed=seed,
                              predicted=predicted, labels=labels))  # fmt: skip
        predictions[f"{method}.seed{seed}"] = predicted.cpu().numpy()
    return runs, predictions


def random_sender(world: World, job: Job, folder: Folder) -> Answer:
    """The same bridge at equal budget on a sender with fresh random weights."""
    layer, changes = chosen(folder, job)
    base = recipe_of(job.task, changes)
    seeds = SEEDS[:1]  # each is another sender, whose states must be computed
    members = [member_of("random", layer, base, {"seed": s}, random=s) for s in seeds]
    done = train_stack(world, job, members)
    final = list(zip(members, done, strict=True))
    runs, predictions = score_bridges(world, job, final, "random_sender", 1)
    return {"runs": runs, "layer": layer}, predictions
