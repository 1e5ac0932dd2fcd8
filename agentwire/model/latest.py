"""What a model has prepared for the tasks that were asked latest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from agentwire.wire.messages import TaskSpec

Prepared = TypeVar("Prepared")

TASKS = 64
"""Prepared tasks that are kept; callers may ask a new question with every request."""


class LatestTasks(Generic[Prepared]):
    """Each task is prepared once while it is in use; the one unused for longest makes room."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, Prepared] = OrderedDict()

    def of(self, task: TaskSpec, prepare: Callable[[TaskSpec], Prepared]) -> Prepared:
        """What was prepared for ``task``, now or before. Raises what ``prepare`` raises."""
        if task.task_id not in self._tasks:
            while len(self._tasks) >= TASKS:
                self._tasks.popitem(last=False)
            self._tasks[task.task_id] = prepare(task)
        self._tasks.move_to_end(task.task_id)
        return self._tasks[task.task_id]
