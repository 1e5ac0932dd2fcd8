"""Queued work: one lane for each producer, lanes joined to a leg, credit on both sides. No IO.

A *leg* is one hop of a wire at the broker, and has one consumer: the agent that the hop leads to.
A *lane* is the bounded queue of one producer of that leg (a client, or the wire's sender)::

    producer --CreditWindow--> [lane] --\\
    producer --CreditWindow--> [lane] ---> leg --CreditGate--> consumer

A producer is granted exactly the room that its lane has (``wire.credit`` has the rules), so what
was granted is never refused for want of room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentwire.errors import RemoteProtocolError
from agentwire.wire.codec import Sealed
from agentwire.wire.credit import CreditGate, CreditWindow, Grant
from agentwire.wire.messages import Encode, Soft, Text

Work = Encode | Soft | Text


def body_bytes(work: Work) -> int:
    """What a message costs in byte credit: the bytes of its body."""
    if isinstance(work, Soft):
        return len(work.payload.data)
    return sum([row.size for row in work.rows])


@dataclass(slots=True)
class Queued:
    """A message that waits for its consumer's credit; ``arrived`` in seconds."""

    work: Work
    size: int
    arrived: float
    sealed: Sealed | None = None


class Lane:
    """The queue of one producer on one leg.

    Args:
        messages, bytes: what it may hold.
    """

    def __init__(self, messages: int, bytes: int) -> None:
        self._window = CreditWindow(messages, bytes)
        self._items: deque[Queued] = deque()
        self._due: Grant | None = self._window.open()

    def __len__(self) -> int:
        return len(self._items)

    def admit(self, item: Queued) -> None:
        """Takes a message.

        Raises:
            RemoteProtocolError: (``overloaded``) the producer was not granted that.
        """
        self._window.arrived(item.size)
        self._items.append(item)

    def pass_on(self, size: int) -> None:
        """Takes a message and gives it away at once; only where none waits.

        Raises:
            RemoteProtocolError: (``overloaded``) the producer was not granted that.
        """
        self._window.arrived(size)
        self._release(size)

    def waive(self, size: int) -> None:
        """Gives back the credit of a message that was refused for another reason."""
        try:
            self._window.arrived(size)
        except RemoteProtocolError:
            return  # there was none to give back
        self._release(size)

    def pop(self) -> Queued:
        item = self._items.popleft()
        self._release(item.size)
        return item

    def remove(self, unwanted: Callable[[Queued], bool]) -> list[Queued]:
        """Takes out the messages for which ``unwanted`` holds."""
        removed: list[Queued] = []
        kept: deque[Queued] = deque()
        for item in self._items:
            (removed if unwanted(item) else kept).append(item)
        self._items = kept
        for item in removed:
            self._release(item.size)
        return removed

    def settle(self) -> Grant | None:
        """What the producer is to be granted now; None if nothing."""
        due, self._due = self._due, None
        return due

    def _release(self, size: int) -> None:
        grant = self._window.consumed(size)
        if grant is not None:
            due = self._due or Grant(0, 0)
            self._due = Grant(due.messages + grant.messages, due.bytes + grant.bytes)


class Leg:
    """One hop of a wire at the broker.

    Args:
        wire: its wire.
        consumer: name of the agent that it leads to.
        producer: the only agent that may feed it; "" where clients do.

    Attributes:
        lanes: the queue of each producer, by name.
    """

    def __init__(self, wire: str, consumer: str, producer: str = "") -> None:
        self.wire = wire
        self.consumer = consumer
        self.producer = producer
        self.lanes: dict[str, Lane] = {}
        self._credit = CreditGate(max_wires=1)

    def grant(self, messages: int, size: int) -> None:
        """The consumer takes so much more.

        Raises:
            RemoteProtocolError: (``malformed``) more than anybody can need.
        """
        self._credit.add(self.wire, messages, size)

    @property
    def takes(self) -> bool:
        """Whether the consumer takes a message now."""
        return self._credit.allows(self.wire)

    def next(self) -> Queued | None:
        """The next message, one lane after the other, if the consumer takes one now."""
        if not self._credit.allows(self.wire):
            return None
        for name, lane in self.lanes.items():
            if lane:
                self.lanes[name] = self.lanes.pop(name)  # to the end: its turn is over
                return lane.pop()
        return None

    def spend(self, size: int) -> None:
        """Counts a message that goes to the consumer now."""
        self._credit.take(self.wire, size)

    def clear(self) -> list[Queued]:
        """The consumer's incarnation is dead: voids its credit and takes out all work."""
        self._credit.clear()
        return [item for lane in self.lanes.values() for item in lane.remove(lambda item: True)]

    def settle(self) -> Iterator[tuple[str, Grant]]:
        """Producers and what each is to be granted now."""
        for name, lane in self.lanes.items():
            grant = lane.settle()
            if grant is not None:
                yield name, grant
