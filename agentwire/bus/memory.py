"""An in-process transport for tests: no sockets, and faults on demand.

A fault is planned for the next messages in one direction, and held messages are delivered by
``release``, so tests are deterministic. Tests without threads can drive both sides by hand:
``wait(0)`` never blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from agentwire.bus.transport import Frame, Frames, Sent
from agentwire.errors import InputError

HIGH_WATER = 64


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


class _ReceiveQueue:
    """Received messages of one side, bounded, with a wake-up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived: deque[tuple[bytes, list[Frame]]] = deque()
        self._woken = False
        self.closed = False

    def put(self, peer: bytes, frames: Frames) -> Sent:
        with self._changed:
            if self.closed:
                return Sent.GONE
            if sum(source == peer for source, _ in self._arrived) >= HIGH_WATER:
                return Sent.FULL
            # As with a real socket, the receiver never sees the sender's own buffer.
            self._arrived.append((peer, [bytes(frame) for frame in frames]))
            self._changed.notify_all()
            return Sent.TAKEN

    def take(self) -> tuple[bytes, list[Frame]] | None:
        with self._changed:
            return self._arrived.popleft() if self._arrived else None

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._woken or self.closed, seconds)
            self._woken = False

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class MemoryTransport:
    """A bus inside one process. Peers are numbered in the order they connect."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, MemoryListener] = {}
        self._links: dict[bytes, MemoryLink] = {}
        self._plans: dict[Direction, list[_Plan]] = {Direction.TO_BROKER: [], Direction.TO_PEER: []}
        self._held: list[Callable[[], Sent]] = []

    def listen(self, endpoint: str) -> MemoryListener:
        with self._lock:
            taken = self._listeners.get(endpoint)
            if taken is not None and not taken.queue.closed:
                raise InputError(
                    f"The bus cannot listen on {endpoint}: it is in use.",
                    hint="Use another MemoryTransport or another endpoint.",
                )
            listener = self._listeners[endpoint] = MemoryListener(self, endpoint)
            return listener

    def connect(self, endpoint: str) -> MemoryLink:
        with self._lock:
            identity = b"\0" + len(self._links).to_bytes(4, "big")
            link = self._links[identity] = MemoryLink(self, endpoint, identity)
            return link

    # -- faults -----------------------------------------------------------------------------

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

    def kill(self, index: int) -> None:
        """The ``index``-th peer that connected dies without a Goodbye."""
        with self._lock:
            link = list(self._links.values())[index]
        link.queue.close()

    # -- moving messages --------------------------------------------------------------------

    def to_broker(self, link: MemoryLink, frames: Frames) -> Sent:
        with self._lock:
            listener = self._listeners.get(link.target)
        if listener is None or link.queue.closed:
            return Sent.FULL  # like a DEALER without a connection
        queue = listener.queue
        return self._move(Direction.TO_BROKER, frames, lambda: queue.put(link.identity, frames))

    def to_peer(self, peer: bytes, frames: Frames) -> Sent:
        with self._lock:
            link = self._links.get(peer)
        if link is None or link.queue.closed:
            return Sent.GONE
        queue = link.queue
        return self._move(Direction.TO_PEER, frames, lambda: queue.put(b"", frames))

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


class MemoryListener:
    """The broker's side of a MemoryTransport."""

    def __init__(self, bus: MemoryTransport, endpoint: str) -> None:
        self._bus = bus
        self.endpoint = endpoint
        self.last_key = ""
        self.queue = _ReceiveQueue()

    def wait(self, seconds: float) -> None:
        self.queue.wait(seconds)

    def receive(self) -> tuple[bytes, list[Frame]] | None:
        return self.queue.take()

    def send(self, peer: bytes, frames: Frames) -> Sent:
        return self._bus.to_peer(peer, frames)

    def wake(self) -> None:
        self.queue.wake()

    def close(self, linger: float) -> None:
        self.queue.close()


class MemoryLink:
    """A peer's side of a MemoryTransport."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, bus: MemoryTransport, target: str, identity: bytes) -> None:
        self._bus = bus
        self.target = target
        self.identity = identity
        self.queue = _ReceiveQueue()

    def wait(self, seconds: float, *, writable: bool = False) -> None:
        # Polls for room at the broker: good enough for tests.
        self.queue.wait(min(seconds, 0.002) if writable else seconds)

    def receive(self) -> list[Frame] | None:
        arrived = self.queue.take()
        return arrived[1] if arrived else None

    def send(self, frames: Frames) -> Sent:
        return self._bus.to_broker(self, frames)

    def wake(self) -> None:
        self.queue.wake()

    def close(self, linger: float) -> None:
        self.queue.close()
