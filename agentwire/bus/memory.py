"""An in-process transport for tests: the same Protocol without sockets, and faults on demand.

Nothing here runs by itself: a fault is planned for the next messages of one direction, and held
messages move when ``release`` is called. So tests are deterministic, and tests without threads
can drive both sides by hand (``wait(0)`` never blocks).
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
    """What happens to one message on its way."""

    DROP = auto()
    DUPLICATE = auto()
    HOLD = auto()  # delayed until release(); later messages overtake it


class Toward(Enum):
    """A direction."""

    BROKER = auto()
    PEER = auto()


@dataclass(slots=True)
class _Plan:
    fault: Fault
    left: int
    when: Callable[[Frames], bool]


class _Inbox:
    """Arrived messages of one side, bounded, with a wake-up."""

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
            # As on a real socket, the receiver never sees the sender's own buffer.
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
    """A bus inside one process. Peers are numbered in the order in which they connect."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, MemoryListener] = {}
        self._links: dict[bytes, MemoryLink] = {}
        self._plans: dict[Toward, list[_Plan]] = {Toward.BROKER: [], Toward.PEER: []}
        self._held: list[Callable[[], Sent]] = []

    def listen(self, endpoint: str) -> MemoryListener:
        with self._lock:
            taken = self._listeners.get(endpoint)
            if taken is not None and not taken.inbox.closed:
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
        toward: Toward,
        *,
        count: int = 1,
        when: Callable[[Frames], bool] = lambda frames: True,
    ) -> None:
        """The next ``count`` messages in this direction for which ``when`` holds suffer this."""
        with self._lock:
            self._plans[toward].append(_Plan(fault, count, when))

    def release(self) -> None:
        """Delivers what was held, in order."""
        with self._lock:
            held, self._held = self._held, []
        for deliver in held:
            deliver()

    def kill(self, index: int) -> None:
        """The ``index``-th peer that connected dies without a word."""
        with self._lock:
            link = list(self._links.values())[index]
        link.inbox.close()

    # -- moving messages --------------------------------------------------------------------

    def to_broker(self, link: MemoryLink, frames: Frames) -> Sent:
        with self._lock:
            listener = self._listeners.get(link.target)
        if listener is None or link.inbox.closed:
            return Sent.FULL  # as a DEALER without a connection
        inbox = listener.inbox
        return self._move(Toward.BROKER, frames, lambda: inbox.put(link.identity, frames))

    def to_peer(self, peer: bytes, frames: Frames) -> Sent:
        with self._lock:
            link = self._links.get(peer)
        if link is None or link.inbox.closed:
            return Sent.GONE
        inbox = link.inbox
        return self._move(Toward.PEER, frames, lambda: inbox.put(b"", frames))

    def _move(self, toward: Toward, frames: Frames, deliver: Callable[[], Sent]) -> Sent:
        fault = self._next_fault(toward, frames)
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

    def _next_fault(self, toward: Toward, frames: Frames) -> Fault | None:
        with self._lock:
            for plan in self._plans[toward]:
                if plan.when(frames):
                    plan.left -= 1
                    if plan.left == 0:
                        self._plans[toward].remove(plan)
                    return plan.fault
        return None


class MemoryListener:
    """The broker's side of a MemoryTransport."""

    def __init__(self, bus: MemoryTransport, endpoint: str) -> None:
        self._bus = bus
        self.endpoint = endpoint
        self.last_key = ""
        self.inbox = _Inbox()

    def wait(self, seconds: float) -> None:
        self.inbox.wait(seconds)

    def receive(self) -> tuple[bytes, list[Frame]] | None:
        return self.inbox.take()

    def send(self, peer: bytes, frames: Frames) -> Sent:
        return self._bus.to_peer(peer, frames)

    def wake(self) -> None:
        self.inbox.wake()

    def close(self, linger: float) -> None:
        self.inbox.close()


class MemoryLink:
    """A peer's side of a MemoryTransport."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, bus: MemoryTransport, target: str, identity: bytes) -> None:
        self._bus = bus
        self.target = target
        self.identity = identity
        self.inbox = _Inbox()

    def wait(self, seconds: float, *, writable: bool = False) -> None:
        # A poll instead of a wake-up when the broker has room again: this is for tests.
        self.inbox.wait(min(seconds, 0.002) if writable else seconds)

    def receive(self) -> list[Frame] | None:
        arrived = self.inbox.take()
        return arrived[1] if arrived else None

    def send(self, frames: Frames) -> Sent:
        return self._bus.to_broker(self, frames)

    def wake(self) -> None:
        self.inbox.wake()

    def close(self, linger: float) -> None:
        self.inbox.close()
