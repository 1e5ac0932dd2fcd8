"""Fits baselines and keeps them in the user cache, named by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentwire.config import ensure_writable
from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.training.baselines.baseline import Baseline, Fitted
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import Objective
from agentwire.training.reporting import TimeLeft

VERSION = 1
"""Increase it when a baseline changes, so that cached results of the old code are ignored."""


def fitted(context: BaselineContext, name: str, baseline: Baseline) -> Fitted:
    """What a baseline learned: from the cache, or fitted now.

    Raises:
        CacheError: the cache cannot be written.
        BridgeError: its loss was never finite.
        DataError, ModelError, DownloadError: something that it needs is not available.
    """
    file = cache_file(context, name)
    found = _load(file)
    if found is None:
        found = baseline.fit(context)
        _save(file, found)
    return found


def cache_file(context: BaselineContext, name: str) -> Path:
    identity = {"version": VERSION, "method": name, **context.identity()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return context.config.home / "baselines" / f"{name}-{digest[:16]}.safetensors"


def _load(file: Path) -> Fitted | None:
    """A baseline from the cache; None if it is missing or corrupt."""
    try:
        with safe_open(file, framework="pt") as stored:
            notes = json.loads((stored.metadata() or {})["notes"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (FileNotFoundError, OSError, SafetensorError, ValueError, KeyError):
        return None
    return Fitted(tensors, notes)


def _save(file: Path, learned: Fitted) -> None:
    ensure_writable(file.parent)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    tensors = {key: value.detach().cpu().contiguous() for key, value in learned.tensors.items()}
    save_file(tensors, partial, metadata={"notes": json.dumps(learned.notes)})
    os.replace(partial, file)


# -- for the baselines' own files ---------------------------------------------------------------


def recipe_of(context: BaselineContext, **changes: Any) -> TrainSpec:
    """The scenario's training settings with those of a baseline."""
    values = {"evaluate_every": max(1, context.recipe.steps // 10), "token_dropout": 0.0}
    return context.recipe.model_copy(update={**values, **changes})


def labels_of(context: BaselineContext, rows: Dataset) -> Tensor:
    """Class ids [n] on the receiver's device."""
    return torch.tensor([row.label for row in rows.rows], device=context.receiver.device)


def train(
    context: BaselineContext, objective: Objective, recipes: Sequence[TrainSpec], stage: str
) -> tuple[int, Trained]:
    """Trains side by side; index and result of the training with the best held-out accuracy.

    Raises:
        BridgeError: no loss was finite.
    """
    steps = recipes[0].steps
    time_left = TimeLeft(steps)

    def report(s: int, evaluation: Evaluation) -> None:
        message = f"{stage}: held-out {evaluation.accuracy:.3f}"
        context.progress(message, evaluation.step / steps)

    def stepped(number: int) -> None:
        message = time_left.stepped(number)
        if message:
            context.progress(f"{stage}: {message}", number / steps)

    done = train_many(objective, recipes, report, stepped=stepped)
    good = [(i, one) for i, one in enumerate(done) if isinstance(one, Trained)]
    if not good:
        raise next(one for one in done if isinstance(one, BridgeError))
    return max(good, key=lambda pair: pair[1].best.rank)
