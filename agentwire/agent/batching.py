"""Which rows are computed together, and when: a pure policy without clocks or IO.

The rules:

* A batch closes when it is full, or when its first row has waited ``max_wait_s``.
* Only rows with the same ``Lane`` share a batch: same wire, task, channel, origin and kind; and
  the same message where batches are made by message: then none waits for company.
* Wires take turns: of the batches that are due, the wire served longest ago goes first; within a
  wire so do its clients, tasks and channels. Who floods delays its own rows only.
* A solo row (a retry after a crash) is due at once and is computed alone.
* A row whose time is up is never computed; ``expired`` hands it back.

The queue is bounded by the credit that the agent granted, not in here.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Generic, NamedTuple, TypeVar


class Kind(IntEnum):
    """What has to be computed for a row; a number, since it is hashed for every row."""

    ENCODE = auto()  # a sender makes soft tokens or a text message
    SOFT = auto()  # a receiver answers from soft tokens
    TEXT = auto()  # a receiver answers from text


class Lane(NamedTuple):
    """What rows must have in common to share a batch.

    Attributes:
        channel: the channel asked for (ENCODE) or used (SOFT, TEXT).
        fallback: of an ENCODE row: ``text`` or ``error``; else "".
        reason: why the text channel was taken, or "".
        bridge: fingerprint of the bridge that made the payload (SOFT), or "".
        message: number of the message, where messages do not share batches; else 0.
        mode: of an ENCODE row: hand on, keep, or hand on what was kept (``messages.Mode``).
    """

    kind: Kind
    wire: str
    task: str
    origin: str
    channel: str
    fallback: str = ""
    reason: str = ""
    bridge: str = ""
    message: int = 0
    mode: str = "forward"


def _stream(lane: Lane) -> Lane:
    """What takes turns within a wire: the lane, whichever message it is."""
    return lane._replace(message=0) if lane.message else lane


T = TypeVar("T")
REMEMBERED = 4096
"""Wires and lanes whose last turn is kept; far more than are at work at once."""


@dataclass(eq=False, slots=True)
class Item(Generic[T]):
    """One row that waits.

    Attributes:
        arrival: when it came in, in monotonic seconds.
        deadline: when its time is up; ``math.inf``: never.
        content: what the worker keeps with it.
    """

    request_id: bytes
    lane: Lane
    arrival: float
    content: T
    deadline: float = math.inf
    solo: bool = False


@dataclass(eq=False)
class _Queue(Generic[T]):
    """Rows of one lane, oldest first; solo rows apart."""

    together: dict[int, Item[T]] = field(default_factory=dict)  # by id(item), keeps the order
    solo: dict[int, Item[T]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.together or self.solo)

    def items(self) -> Iterator[Item[T]]:
        yield from self.solo.values()
        yield from self.together.values()


class Batcher(Generic[T]):
    """Rows that wait for compute.

    Args:
        max_size: most rows of one batch.
        max_wait_s: how long the first row of a batch waits for company, in seconds.

    Attributes:
        taken: how many batches of each kind and size were handed out.
    """

    def __init__(self, max_size: int, max_wait_s: float) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is {max_size}; a batch has at least one row")
        self._max_size = max_size
        self._max_wait = max_wait_s
        self.taken: Counter[tuple[Kind, int]] = Counter()
        self._queues: dict[Lane, _Queue[T]] = {}
        self._turn = 0
        # Wire, or kind of rows -> turn in which it was served last.
        self._served: OrderedDict[str | Lane, int] = OrderedDict()
        self._next_deadline = math.inf

    def __len__(self) -> int:
        return sum(len(q.together) + len(q.solo) for q in self._queues.values())

    def add(self, item: Item[T]) -> None:
        """Takes a row in."""
        queue = self._queues.setdefault(item.lane, _Queue())
        (queue.solo if item.solo else queue.together)[id(item)] = item
        self._next_deadline = min(self._next_deadline, item.deadline)

    def remove(self, item: Item[T]) -> bool:
        """Takes a row out again; False if it is not waiting."""
        queue = self._queues.get(item.lane)
        if queue is None:
            return False
        found = queue.together.pop(id(item), None) or queue.solo.pop(id(item), None)
        self._tidy(item.lane)
        return found is not None

    def cancel(self, request_ids: Collection[bytes], origin: str) -> list[Item[T]]:
        """Takes out the waiting rows of ``origin`` with these ids."""
        ids = frozenset(request_ids)
        return self._remove_where(lambda i: i.lane.origin == origin and i.request_id in ids)

    def expired(self, now: float) -> list[Item[T]]:
        """Takes out the rows whose time is up."""
        if now < self._next_deadline:
            return []
        gone = self._remove_where(lambda item: item.deadline <= now)
        self._next_deadline = min((item.deadline for item in self._all()), default=math.inf)
        return gone

    def take(self, now: float, held: Callable[[Lane], bool] | None = None) -> list[Item[T]]:
        """The next batch that is due, oldest row first; empty if none is.

        Args:
            now: monotonic seconds; call ``expired`` with it first.
            held: lanes that cannot be computed now.
        """
        due = [
            lane
            for lane, queue in self._queues.items()
            if self._due(lane, queue) <= now and not (held and held(lane))
        ]
        if not due:
            return []
        lane = min(due, key=self._turn_of)
        queue = self._queues[lane]
        size = 1 if queue.solo else self._max_size
        source = queue.solo or queue.together
        batch = [source.pop(key) for key in list(source)[:size]]
        self._tidy(lane)
        self.taken[lane.kind, len(batch)] += 1
        self._turn += 1
        for name in (lane.wire, _stream(lane)):
            self._served[name] = self._turn
            self._served.move_to_end(name)
        if len(self._served) > REMEMBERED:
            self._served.popitem(last=False)
        return batch

    def _turn_of(self, lane: Lane) -> tuple[int, int, float]:
        """Who goes first: the smallest."""
        wire, stream = self._served.get(lane.wire, -1), self._served.get(_stream(lane), -1)
        return wire, stream, self._due(lane, self._queues[lane])

    def next_event(self, held: Callable[[Lane], bool] | None = None) -> float:
        """When a batch will be due or a row's time be up; ``math.inf`` if never."""
        due = (self._due(lane, q) for lane, q in self._queues.items() if not (held and held(lane)))
        return min(min(due, default=math.inf), self._next_deadline)

    def _due(self, lane: Lane, queue: _Queue[T]) -> float:
        if queue.solo:
            return -math.inf
        if len(queue.together) >= self._max_size:
            return -math.inf
        first = next(iter(queue.together.values()))
        # A message came whole: nobody can join it.
        return first.arrival + (0.0 if lane.message else self._max_wait)

    def _all(self) -> Iterator[Item[T]]:
        for queue in self._queues.values():
            yield from queue.items()

    def _remove_where(self, unwanted: Callable[[Item[T]], bool]) -> list[Item[T]]:
        gone = [item for item in self._all() if unwanted(item)]
        for item in gone:
            self.remove(item)
        return gone

    def _tidy(self, lane: Lane) -> None:
        queue = self._queues.get(lane)
        if queue is not None and not queue:
            del self._queues[lane]
