"""Which rows are computed together, and when. A pure policy without clocks or IO.

* A batch closes when it is full, or when its first row has waited ``max_wait_s``.
* Only rows of the same ``BatchGroup`` share a batch. Where batches are made by message, the group
  includes the message, and no row waits for others.
* Wires take turns: of the batches that are due, the wire served longest ago goes first; within a
  wire the same holds for clients, tasks and channels. A flood delays only its own rows.
* A solo row (a retry after a crash) is due at once and computed alone.
* A row whose deadline has passed is never computed; ``expired`` returns it.

The queue is bounded by the credit that the agent grants, not here.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from agentwire.agent.kept import KeptRow
from agentwire.wire.messages import Row, Stages


class Kind(IntEnum):
    """What is computed for a row. A number, because it is hashed for every row."""

    ENCODE = auto()  # a sender makes soft tokens or a text message
    SOFT = auto()  # a receiver answers from soft tokens
    TEXT = auto()  # a receiver answers from text


class BatchGroup(NamedTuple):
    """What rows must have in common to share a batch."""

    kind: Kind
    wire: str
    task: str
    origin: str
    channel: str  # requested (ENCODE) or used (SOFT, TEXT)
    fallback: str = ""  # text or error, of an ENCODE row
    reason: str = ""  # why the text channel was used
    bridge: str = ""  # fingerprint of the bridge that made the payload (SOFT)
    message: int = 0  # number of the message where batches are made by message
    mode: str = ""  # of an ENCODE row (``messages.Mode``)
    soft_tokens: int = 0  # M of the payload (SOFT)


WorkKey: TypeAlias = tuple[bytes, Kind, str, str, str, str]
"""Identifies the same work across resends: request id, kind, wire, task, origin, channel."""


@dataclass(eq=False, slots=True)
class Inbound:
    """One incoming message. Its credit is returned when its last row is done."""

    wire: str
    size: int  # its cost in byte credit
    remaining: int  # rows that are not done
    arrival: float
    stages: Stages  # milliseconds spent before it arrived
    payload_bytes: int = 0  # of one row


@dataclass(eq=False, slots=True)
class WorkItem:
    """One row to compute, with a ``text`` or a ``payload`` (float16 [M, d])."""

    row: Row
    group: BatchGroup
    key: WorkKey
    message: Inbound
    deadline: float = math.inf
    solo: bool = False
    text: str = ""
    payload: npt.NDArray[np.float16] | None = None
    rms_range: tuple[float, float] | None = None  # allowed for the payload; None: checked before
    kept: KeptRow | None = None  # what the row names instead of a text
    cancelled: bool = False
    streamed: int = 0  # bytes of the answer that were sent as Pieces


MAX_REMEMBERED: Final = 4096
"""Wires and groups whose last turn is remembered; far more than are active at once."""


_QueueKey: TypeAlias = tuple[BatchGroup, bool]
_Queue: TypeAlias = dict[int, WorkItem]
"""Rows of one group by id(item), oldest first. Solo rows have a queue of their own."""


class Batcher:
    """Rows that wait to be computed. ``taken`` counts batches by kind and size."""

    def __init__(self, max_size: int, max_wait_s: float) -> None:
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, got {max_size}")
        self._max_size = max_size
        self._max_wait = max_wait_s
        self.taken: Counter[tuple[Kind, int]] = Counter()
        self._queues: dict[_QueueKey, _Queue] = {}
        self._turn = 0
        self._last_turn: OrderedDict[str | BatchGroup, int] = OrderedDict()  # by wire and group
        self._next_deadline = math.inf

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, item: WorkItem) -> None:
        self._queues.setdefault((item.group, item.solo), {})[id(item)] = item
        if item.deadline < self._next_deadline:
            self._next_deadline = item.deadline

    def remove(self, item: WorkItem) -> bool:
        """Removes a row; False if it does not wait."""
        key = (item.group, item.solo)
        queue = self._queues.get(key, {})
        found = queue.pop(id(item), None) is not None
        if found and not queue:
            del self._queues[key]
        return found

    def cancel(self, request_ids: Collection[bytes], origin: str) -> list[WorkItem]:
        """Removes and returns the rows of ``origin`` with these ids."""
        ids = frozenset(request_ids)
        return self._remove_where(lambda i: i.group.origin == origin and i.row.request_id in ids)

    def expired(self, now: float) -> list[WorkItem]:
        """Removes and returns the rows whose deadline has passed."""
        if now < self._next_deadline:
            return []
        expired = self._remove_where(lambda item: item.deadline <= now)
        left = (item.deadline for queue in self._queues.values() for item in queue.values())
        self._next_deadline = min(left, default=math.inf)
        return expired

    def take(
        self, now: float, blocked: Callable[[BatchGroup], bool] | None = None
    ) -> list[WorkItem]:
        """The next batch that is due, oldest row first; empty if there is none.

        Args:
            now: monotonic seconds; call ``expired`` with it first.
            blocked: whether a group cannot be computed now.
        """
        due: list[_QueueKey] = []
        for key, queue in self._queues.items():
            if self._due(key, queue) <= now and not (blocked and blocked(key[0])):
                due.append(key)
        if not due:
            return []
        key = due[0] if len(due) == 1 else min(due, key=self._priority)
        group, solo = key
        queue = self._queues[key]
        size = 1 if solo else self._max_size
        batch = list(queue.values())[:size]
        if size < len(queue):
            for item in batch:
                del queue[id(item)]
        else:
            del self._queues[key]
        self.taken[group.kind, len(batch)] += 1
        self._turn += 1
        if group.message:  # all messages of a group take turns together
            group = group._replace(message=0)
        for name in (group.wire, group):
            self._last_turn[name] = self._turn
            self._last_turn.move_to_end(name)
        if len(self._last_turn) > MAX_REMEMBERED:
            self._last_turn.popitem(last=False)
        return batch

    def _priority(self, key: _QueueKey) -> tuple[int, int, bool, float]:
        """Smallest first: last turns of wire and group, solo rows, then when the batch was due."""
        group, solo = key
        wire = self._last_turn.get(group.wire, -1)
        turn = self._last_turn.get(group._replace(message=0), -1)
        return wire, turn, not solo, self._due(key, self._queues[key])

    def next_event(self, blocked: Callable[[BatchGroup], bool] | None = None) -> float:
        """When the next batch is due or the next row expires; may be ``math.inf``."""
        when = self._next_deadline
        for key, queue in self._queues.items():
            due = self._due(key, queue)
            if due < when and not (blocked and blocked(key[0])):
                when = due
        return when

    def _due(self, key: _QueueKey, queue: _Queue) -> float:
        group, solo = key
        if solo or len(queue) >= self._max_size:
            return -math.inf
        first = next(iter(queue.values()))
        # Where batches are made by message, all rows of the batch are here already.
        return first.message.arrival + (0.0 if group.message else self._max_wait)

    def _remove_where(self, unwanted: Callable[[WorkItem], bool]) -> list[WorkItem]:
        rows = [item for queue in self._queues.values() for item in queue.values()]
        removed = [item for item in rows if unwanted(item)]
        for item in removed:
            self.remove(item)
        return removed
