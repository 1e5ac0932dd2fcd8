"""Training for a series: tasks that ask different things about the same texts, one bridge for all.

The sender's states are computed once; each task is a part of the training, with labels of its own
and its own question to the receiver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.spec.scenario import DataChoice
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import definitions, load_definition
from agentwire.training.joint import JointStates
from agentwire.training.states import StateCache, States
from agentwire.wire.messages import TaskSpec

S = TypeVar("S", StateCache, JointStates)


@dataclass(frozen=True, slots=True)
class TaskPart:
    """One task of a training: its question, and the states with its labels."""

    task: TaskSpec
    cache: States
    held_out: States


def task_parts(
    data: DataChoice,
    rows: tuple[Dataset, Dataset],
    caches: tuple[S, S],
    config: Config,
) -> list[TaskPart]:
    """The tasks that a bridge for ``data`` is trained on: its own, or all of its series.

    Args:
        data: what the scenario names. Rows read from a path stand alone: the path does not say
            where those of the other tasks are.
        rows: training rows and held-out rows of ``data``.
        caches: the states of both.
        config: where the rows of the other tasks are looked for.

    Raises:
        DataError: another task of the series lacks one of these texts.
    """
    own = load_definition(data.dataset)
    if own.series is None or data.path is not None:
        return [TaskPart(own.spec(), *caches)]
    parts = []
    for name, task in definitions().items():
        if task.series == own.series:
            split = load_rows(name, rows[0].split, config=config)
            labels = {row.text: row.label for row in split.rows}
            cache, held_out = (
                _with_labels(states, part, labels, name)
                for states, part in zip(caches, rows, strict=True)
            )
            parts.append(TaskPart(task.spec(), cache, held_out))
    return parts


def _with_labels(cache: S, rows: Dataset, labels: dict[str, int], name: str) -> S:
    missing = next((row.text for row in rows.rows if row.text not in labels), None)
    if missing is not None:
        raise DataError(
            f"{name} has no row for the text {missing[:40]!r} of {rows.name}.",
            hint="Tasks of one series must have the same texts.",
        )
    found: Sequence[int] = [labels[row.text] for row in rows.rows]
    return replace(cache, labels=torch.tensor(found, device=cache.labels.device))
