"""A memory transport that loses, repeats or delays messages on demand.

A fault is planned for the next messages in one direction, and held messages are delivered by
``release``, so tests are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from agentwire.bus.memory import MemoryLink, MemoryTransport
from agentwire.bus.transport import Frames, PeerId, Sent


class Fault(Enum):
    """What happens to one message."""

    DROP = auto()
    DUPLICATE = auto()
    HOLD = auto()  # delayed until release(); later messages overtake it


class Direction(Enum):
    TO_BROKER = auto()
    TO_PEER = auto()


@dataclass(slots=True)
class _Plan:
    fault: Fault
    left: int
    when: Callable[[Frames], bool]


class FaultyTransport(MemoryTransport):
    def __init__(self) -> None:
        super().__init__()
        self._plans: dict[Direction, list[_Plan]] = {direction: [] for direction in Direction}
        self._held: list[Callable[[], Sent]] = []

    def plan(
        self,
        fault: Fault,
        direction: Direction,
        *,
        count: int = 1,
        when: Callable[[Frames], bool] = lambda frames: True,
    ) -> None:
        """Plans a fault for the next ``count`` messages that match ``when``."""
        with self._lock:
            self._plans[direction].append(_Plan(fault, count, when))

    def release(self) -> None:
        """Delivers held messages in order."""
        with self._lock:
            held, self._held = self._held, []
        for deliver in held:
            deliver()

    def to_broker(self, link: MemoryLink, frames: Frames) -> Sent:
        deliver = super().to_broker
        return self._move(Direction.TO_BROKER, frames, lambda: deliver(link, frames))

    def to_peer(self, peer: PeerId, frames: Frames) -> Sent:
        link = self._links.get(peer)
        if link is None or link.queue.closed:
            return Sent.GONE
        deliver = super().to_peer
        return self._move(Direction.TO_PEER, frames, lambda: deliver(peer, frames))

    def _move(self, direction: Direction, frames: Frames, deliver: Callable[[], Sent]) -> Sent:
        fault = self._next_fault(direction, frames)
        if fault is Fault.DROP:
            return Sent.TAKEN
        if fault is Fault.HOLD:
            with self._lock:
                self._held.append(deliver)
            return Sent.TAKEN
        sent = deliver()
        if fault is Fault.DUPLICATE and sent is Sent.TAKEN:
            deliver()
        return sent

    def _next_fault(self, direction: Direction, frames: Frames) -> Fault | None:
        with self._lock:
            for plan in self._plans[direction]:
                if plan.when(frames):
                    plan.left -= 1
                    if plan.left == 0:
                        self._plans[direction].remove(plan)
                    return plan.fault
        return None
