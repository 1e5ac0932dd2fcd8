"""An in-process transport without sockets, for tests and for driving both sides by hand.

``wait(0)`` never blocks. ``tests/bus/faulty_transport.py`` adds faults on demand.
"""

from __future__ import annotations

import threading
from collections import deque

from agentwire.bus.transport import Frame, Frames, PeerId, Sent
from agentwire.errors import InputError

HIGH_WATER = 64


class _ReceiveQueue:
    """Received messages of one side, bounded, with a wake-up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived: deque[tuple[PeerId, list[Frame]]] = deque()
        self._woken = False
        self.closed = False

    def put(self, peer: PeerId, frames: Frames) -> Sent:
        with self._changed:
            if self.closed:
                return Sent.GONE
            if sum(source == peer for source, _ in self._arrived) >= HIGH_WATER:
                return Sent.FULL
            # As with a real socket, the receiver never sees the sender's own buffer.
            self._arrived.append((peer, [bytes(frame) for frame in frames]))
            self._changed.notify_all()
            return Sent.TAKEN

    def take(self) -> tuple[PeerId, list[Frame]] | None:
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
        self._links: dict[PeerId, MemoryLink] = {}

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

    def kill(self, index: int) -> None:
        """The ``index``-th peer that connected dies without a Goodbye."""
        with self._lock:
            link = list(self._links.values())[index]
        link.queue.close()

    def to_broker(self, link: MemoryLink, frames: Frames) -> Sent:
        with self._lock:
            listener = self._listeners.get(link.target)
        if listener is None or link.queue.closed:
            return Sent.FULL  # like a DEALER without a connection
        return listener.queue.put(link.identity, frames)

    def to_peer(self, peer: PeerId, frames: Frames) -> Sent:
        with self._lock:
            link = self._links.get(peer)
        if link is None or link.queue.closed:
            return Sent.GONE
        return link.queue.put(b"", frames)


class MemoryListener:
    """The broker's side of a MemoryTransport."""

    def __init__(self, bus: MemoryTransport, endpoint: str) -> None:
        self._bus = bus
        self.endpoint = endpoint
        self.last_key = ""
        self.queue = _ReceiveQueue()
        self.wait, self.receive, self.wake = self.queue.wait, self.queue.take, self.queue.wake

    def send(self, peer: PeerId, frames: Frames) -> Sent:
        return self._bus.to_peer(peer, frames)

    def close(self, linger: float) -> None:
        self.queue.close()


class MemoryLink:
    """A peer's side of a MemoryTransport."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, bus: MemoryTransport, target: str, identity: PeerId) -> None:
        self._bus = bus
        self.target = target
        self.identity = identity
        self.queue = _ReceiveQueue()
        self.wake = self.queue.wake

    def wait(self, seconds: float, *, writable: bool = False) -> None:
        # Polls for room at the broker: good enough for tests.
        self.queue.wait(min(seconds, 0.002) if writable else seconds)

    def receive(self) -> list[Frame] | None:
        arrived = self.queue.take()
        return arrived[1] if arrived else None

    def send(self, frames: Frames) -> Sent:
        return self._bus.to_broker(self, frames)

    def close(self, linger: float) -> None:
        self.queue.close()
