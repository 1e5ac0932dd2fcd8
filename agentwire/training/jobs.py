"""Runs training jobs in groups that fit into one pass of the receiver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from agentwire.config import Config
from agentwire.errors import BridgeError
from agentwire.training.checkpoint import Checkpoint

ROWS_AT_ONCE = {"cpu": 64, "cuda": 1024}
"""Rows of one step, over all bridges that train side by side. On a CPU more rows than fill its
caches cost memory and gain nothing. A GPU that runs out of memory takes half as many."""


def side_by_side(batch_sizes: Sequence[int], most: int) -> list[list[int]]:
    """Splits trainings, in order, into groups of at most ``most`` rows per step.

    A training with a larger batch gets a group of its own.
    """
    groups: list[list[int]] = []
    room = 0
    for number, rows in enumerate(batch_sizes):
        if rows > room or not groups:
            groups.append([])
            room = most
        groups[-1].append(number)
        room -= rows
    return groups


def run_in_groups(
    batch_sizes: Sequence[int],
    device: torch.device,
    train: Callable[[Sequence[int]], Sequence[BridgeError]],
) -> None:
    """Trains all jobs, as many side by side as fit; half as many where memory runs out.

    Args:
        batch_sizes: one per job.
        device: of the receiver.
        train: trains and writes the jobs with these numbers and returns the failures.

    Raises:
        BridgeError: the first failure, after all jobs have been tried.
    """
    groups = side_by_side(batch_sizes, ROWS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"])
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
    """The checkpoint of one training; its name depends on everything that the training reads."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Checkpoint(config.home / "training" / f"{bridge}-{digest[:16]}.safetensors", digest)
