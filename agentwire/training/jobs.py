"""Bridges that train side by side: in which groups, how each learns, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from agentwire.config import Config
from agentwire.errors import BridgeError
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training import loop as trainer
from agentwire.training.checkpoint import Checkpoint
from agentwire.training.objective import BridgeObjective, LogitsFromSoft
from agentwire.training.reporting import Report
from agentwire.wire.messages import TaskSpec

ROWS_AT_ONCE = {"cpu": 64, "cuda": 1024}
"""Rows of one step, over all bridges that train side by side. A CPU gains nothing from more than
fill its caches, and they cost memory; a GPU that lacks the memory takes half as many."""


def in_groups(
    batch_sizes: Sequence[int],
    device: torch.device,
    train: Callable[[Sequence[int]], Sequence[BridgeError]],
) -> None:
    """Trains bridges, as many side by side as go together; half as many where memory ends.

    Args:
        batch_sizes: of each bridge.
        device: the receiver's.
        train: trains those of these numbers, writes them, and says why some could not be.

    Raises:
        BridgeError: the first failure, after all have been tried.
    """
    groups = trainer.side_by_side(
        batch_sizes, ROWS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"]
    )
    failures: list[BridgeError] = []
    while groups:
        numbers = groups.pop(0)
        try:
            failures += train(numbers)
        except torch.OutOfMemoryError:
            if len(numbers) == 1:
                raise
            half = len(numbers) // 2
            groups[:0] = [numbers[:half], numbers[half:]]
    if failures:
        raise failures[0]


def checkpoint_of(config: Config, bridge: str, identity: Sequence[object]) -> Checkpoint:
    """Named by everything that the training depends on, so that two never share one."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Checkpoint(config.home / "training" / f"{bridge}-{digest[:16]}.safetensors", digest)


def asked(receiver: TransformersBackend, task: TaskSpec) -> LogitsFromSoft:
    """The receiver, asked a task's question."""
    receiver.prepare(task)
    return lambda soft: receiver.logits_from_soft(soft, task)


def learned(
    problem: BridgeObjective, recipes: Sequence[TrainSpec], report: Report, checkpoint: Checkpoint
) -> list[trainer.Trained | BridgeError]:
    """Trains, and tells how it goes."""
    # What is trained stays float32; its matrix products may take the tensor cores' TF32.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return trainer.train_many(
            problem, recipes, report.evaluated, checkpoint, stepped=report.stepped
        )
    finally:
        torch.set_float32_matmul_precision(before)


def settled(
    names: Sequence[str],
    done: Sequence[trainer.Trained | BridgeError],
    write: Callable[[int, trainer.Trained], None],
) -> list[BridgeError]:
    """Writes what was trained, by its number; why others were not, with their names ("": none)."""
    failures = []
    for number, (name, result) in enumerate(zip(names, done, strict=True)):
        if isinstance(result, BridgeError):
            who = f"{name}: " if name else ""
            failures.append(BridgeError(f"{who}{result.message}", hint=result.hint))
        else:
            write(number, result)
    return failures
