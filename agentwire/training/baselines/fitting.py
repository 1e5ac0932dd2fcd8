"""Fits baselines and keeps them in the user cache, named by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.training.baselines.baseline import Baseline, Fitted
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.checkpoint import load_tensors, save_tensors
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import (
    Objective,
    RandomStream,
    Score,
    label_schedules,
    score,
)
from agentwire.training.reporting import TimeLeft

VERSION = 1
"""Increase it when a baseline changes, so that cached results of the old code are ignored."""


def fitted(context: BaselineContext, name: str, baseline: Baseline) -> Fitted:
    """What a baseline learned: from the cache, or fitted now."""
    file = cache_file(context, name)
    if found := load_tensors(file):
        return Fitted(*found)
    learned = baseline.fit(context)
    save_tensors(file, learned.tensors, learned.notes)
    return learned


def cache_file(context: BaselineContext, name: str) -> Path:
    identity = {"version": VERSION, "method": name, **context.identity()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return context.config.home / "baselines" / f"{name}-{digest[:16]}.safetensors"


def recipe_of(context: BaselineContext, **changes: Any) -> TrainSpec:
    """The scenario's training settings with those of a baseline."""
    values = {"evaluate_every": max(1, context.recipe.steps // 10), "token_dropout": 0.0}
    return context.recipe.model_copy(update={**values, **changes})


def labels_of(context: BaselineContext, rows: Dataset) -> Tensor:
    """Class ids [n] on the receiver's device."""
    return torch.tensor([row.label for row in rows.rows], device=context.receiver.device)


class ClassifierObjective:
    """Trains S modules, each with its own cross-entropy over the classes.

    Args:
        labels: [n] class ids of the training rows.
        logits: label logits [b, L] of a module on the training rows with these numbers [b].
        held_out: [m] class ids of the held-out rows.
        held_out_logits: label logits [m, L] of a module on all held-out rows.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        labels: Tensor,
        logits: Callable[[nn.Module, Tensor], Tensor],
        held_out: Tensor,
        held_out_logits: Callable[[nn.Module], Tensor],
        label_smoothing: float = 0.0,
    ) -> None:
        self.modules: Sequence[nn.Module] = list(modules)
        self.labels: Sequence[Sequence[Tensor]] = [[labels]] * len(self.modules)
        self.random: Sequence[RandomStream] = ()
        self.device = labels.device
        self._logits, self._smoothing = logits, label_smoothing
        self._held_out, self._held_out_logits = held_out, held_out_logits

    def batches(self, recipes: Sequence[TrainSpec]) -> Sequence[Sequence[Tensor]]:
        return label_schedules(self.labels, recipes, self.device)

    def shape(self, number: int) -> None:
        return None

    def losses(self, rows: Sequence[Sequence[Tensor]], shape: Any) -> list[Tensor]:
        return [
            F.cross_entropy(
                self._logits(module, chosen), labels[chosen], label_smoothing=self._smoothing
            )
            for module, (labels,), (chosen,) in zip(self.modules, self.labels, rows, strict=True)
        ]

    @torch.no_grad()
    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        return [score(self._held_out_logits(module), self._held_out) for module in modules]


def train(
    context: BaselineContext, objective: Objective, recipes: Sequence[TrainSpec], stage: str
) -> tuple[int, Trained]:
    """Trains side by side; index and result of the best. Raises BridgeError if all failed."""
    steps = recipes[0].steps
    time_left = TimeLeft(steps)

    def report(evaluations: Sequence[Evaluation]) -> None:
        best = max(evaluations, key=lambda one: one.rank)
        context.progress(f"{stage}: held-out {best.accuracy:.3f}", best.step / steps)

    def stepped(number: int) -> None:
        message = time_left.stepped(number)
        if message:
            context.progress(f"{stage}: {message}", number / steps)

    done = train_many(objective, recipes, report, stepped=stepped)
    good = [(i, one) for i, one in enumerate(done) if isinstance(one, Trained)]
    if not good:
        raise next(one for one in done if isinstance(one, BridgeError))
    return max(good, key=lambda pair: pair[1].best.rank)
