"""Studies of one task on held-out training rows: layers, sensitivity, ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from agentwire.bridge.resampler import Resampler, ResamplerShape
from agentwire.training.baselines.probe import Scaler, choose_logistic, mean_pooled
from lab.bridges import BASE, Answer, chosen, member_of, note, train_stack
from lab.files import Folder
from lab.jobs import ALL_LAYERS, SEEDS, Job
from lab.member import Member
from lab.world import Opening, World

LAYER_ROWS = 16_384
"""Training rows of the layer study: states of every layer would take longer than its trainings."""


def layers(world: World, job: Job, folder: Folder) -> Answer:
    """Bridges and mean-pooled probes on many layers, on held-out rows."""
    base = BASE.model_copy(update={"steps": 750, "average": 0.99})
    members = [
        member_of(f"layer{n}", n, base, {}, rows=LAYER_ROWS) for n in ALL_LAYERS[job.direction]
    ]
    done = train_stack(world, job, members)
    found = []
    for member, trained in zip(members, done, strict=True):
        caches = [
            world.states(job.direction, job.task, member.layer, part, most=member.rows)
            for part in ("train", "held_out")
        ]
        scaler = Scaler.of(caches[0])
        features = [mean_pooled(cache, scaler) for cache in caches]
        probe = choose_logistic(features[0], caches[0].labels, features[1], caches[1].labels,
                                world.rows(job.task).classes)  # fmt: skip
        entry = note(member, trained)
        found.append({"task": job.task, "direction": job.direction, **entry,
                      "train_rows": len(caches[0]),
                      "probe_mean_held_out": probe.held_out_accuracy})  # fmt: skip
    return {"studies": {"layers": found}}, {}


def sensitivity(world: World, job: Job, folder: Folder) -> Answer:
    """One setting at a time away from the base, on held-out rows."""
    layer, _ = chosen(folder, job)
    base = BASE.model_copy(update={"steps": 750})
    factors: list[tuple[str, Any]] = [("learning_rate", r) for r in (1e-5, 1e-4, 2e-3, 5e-3)]
    factors += [("batch_size", n) for n in (8, 16, 128)]
    factors += [("diversity", w) for w in (0.1, 1.0)]
    members = [member_of("base", layer, base, {})]
    members += [member_of(f"{k}={v}", layer, base, {k: v}) for k, v in factors]
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


ABLATION_ROWS = 32_768
"""Training rows of the ablation, whose states are computed for each opening."""
PLAIN: dict[str, Any] = {"average": 0.0, "token_dropout": 0.0, "batch_size": 16}
"""What the first experiments had: no averaging, nothing hidden, small batches."""
VARIANTS: dict[str, tuple[dict[str, Any], Opening]] = {
    "all on": ({}, "dropped"),
    "no averaging": ({"average": 0.0}, "dropped"),
    "no token dropout": ({"token_dropout": 0.0}, "dropped"),
    "rate 1e-4": ({"learning_rate": 1e-4}, "dropped"),
    "opening token shown": ({}, "kept"),
    "no opening token": ({}, "absent"),
    "no standardisation": ({}, "dropped"),
    "no clamp": ({}, "dropped"),
    "opening token shown, no clamp": ({}, "kept"),
    "opening token shown, no standardisation": ({}, "kept"),
    "plain": (PLAIN, "kept"),
    "plain, standardised": (PLAIN, "kept"),
}
"""Settings, and what becomes of the opening token; the names say the rest (``_kind_of``)."""


def ablation(world: World, job: Job, folder: Folder) -> Answer:
    """What made the reverse direction learn: one thing off at a time, on held-out rows."""
    layer, _ = chosen(folder, job)
    base = BASE.model_copy(update={"steps": 750})
    members = [
        member_of(name, layer, base, changes | {"seed": seed}, opening=opening,
                  kind=_kind_of(name), rows=ABLATION_ROWS)
        for seed in job.options.get("seeds", SEEDS[:1])
        for name, (changes, opening) in VARIANTS.items()
    ]  # fmt: skip
    return {"studies": {"ablation": _trained(world, job, members)}}, {}


def _trained(world: World, job: Job, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Runs of an ablation: what the members reach on held-out rows."""
    done = train_stack(world, job, members)
    return [
        {"task": job.task, "direction": job.direction, "opening": member.opening,
         "train_rows": ABLATION_ROWS, "steps": member.recipe.steps, **note(member, trained)}
        for member, trained in zip(members, done, strict=True)
    ]  # fmt: skip


def _kind_of(name: str) -> type[Resampler]:
    """The module of an ablation; z-scores that are not made need not be cut either."""
    if "no standardisation" in name or name == "plain":
        return Unstandardised
    return Unclamped if "no clamp" in name else Resampler


# -- the first try --------------------------------------------------------------------------------


class Unscaled(Resampler):
    """A bridge whose soft tokens have an RMS of 1 instead of that of the receiver's embeddings."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return super().forward(states, mask) / self.alpha


class UnscaledUnstandardised(Unscaled, Unstandardised):
    """Neither."""


class Bare(Unstandardised):
    """A bridge whose input is not normalised: no z-scores, and no layer norm of each state."""

    def __init__(self, shape: ResamplerShape, *, dropout: float = 0.0) -> None:
        super().__init__(shape, dropout=dropout)
        self.norm_in = nn.Identity()  # type: ignore[assignment]


class UnscaledBare(Unscaled, Bare):
    """Neither that, nor the receiver's scale."""


FIRST_TRY: dict[str, tuple[type[Resampler], Opening]] = {
    "first try": (Unstandardised, "absent"),
    "opening token read, its state shown": (Unstandardised, "kept"),
    "opening token read, its state hidden": (Unstandardised, "dropped"),
    "standardised": (Unclamped, "absent"),
    "standardised and clamped": (Resampler, "absent"),
    "receiver's scale not met": (UnscaledUnstandardised, "absent"),
    "no layer norm": (Bare, "absent"),
    "no layer norm, receiver's scale not met": (UnscaledBare, "absent"),
    "no layer norm, receiver's scale not met, opening token hidden": (UnscaledBare, "dropped"),
    "receiver's scale not met, all else on": (Unscaled, "dropped"),
}
"""The bridge, and what becomes of the opening token. The first has nothing that came later: no
opening token, no standardisation, no clamp; each other differs from it as it says."""
ROUGH: dict[str, Any] = {"warmup": 0.0, "clip": 1e9}
BARE = "no layer norm, receiver's scale not met"
Variant = tuple[type[Resampler], Opening, int, dict[str, Any]]
"""The bridge, what becomes of the opening token, layer, changes of the recipe."""
ROUGHER: dict[str, Variant] = {
    "no warm-up, no clipping": (Unstandardised, "absent", 10, ROUGH),
    f"{BARE}, no warm-up, no clipping": (UnscaledBare, "absent", 10, ROUGH),
    "layer 9": (Unstandardised, "absent", 9, {}),
    "layer 15": (Unstandardised, "absent", 15, {}),
    f"layer 15, {BARE}, no warm-up, no clipping": (UnscaledBare, "absent", 15, ROUGH),
    "the same, opening token hidden": (UnscaledBare, "dropped", 15, ROUGH),
}
"""More that the first experiment may have had."""
FIRST_STEPS = 1500
"""As many as the first experiments had."""


def first_try(world: World, job: Job, folder: Folder) -> Answer:
    """What put the reverse direction at chance: the first experiment's settings at once, then one
    thing put back, or taken away as well, at a time; on held-out rows."""
    layer, _ = chosen(folder, job)
    base = BASE.model_copy(update={**PLAIN, "steps": FIRST_STEPS, "evaluate_every": 500})
    variants: dict[str, Variant] = {
        name: (*variant, layer, {}) for name, variant in FIRST_TRY.items()
    }
    if job.options.get("rougher"):
        variants = ROUGHER
    members = [
        member_of(name, at, base, changes | {"seed": seed}, opening=opening, kind=kind,
                  rows=ABLATION_ROWS)
        for seed in job.options.get("seeds", SEEDS[:1])
        for name, (kind, opening, at, changes) in variants.items()
    ]  # fmt: skip
    return {"studies": {"first_try": _trained(world, job, members)}}, {}
