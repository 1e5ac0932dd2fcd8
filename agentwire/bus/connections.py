"""The broker's connections: each with its session and what waits to be written to it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from agentwire.bus.stimuli import PeerId
from agentwire.bus.transport import Frame, Listener, Sent
from agentwire.wire.messages import Goodbye
from agentwire.wire.session import Session
from agentwire.wire.states import State

OUTBOX_MESSAGES = 4096  # that wait for a peer that does not read; then it is cut off
RETRY_FULL = 0.005  # s; a ROUTER cannot say when the queue of one peer has room again


@dataclass(slots=True)
class Connection:
    """One connection; ``tick_at`` is when its session wants to know the time.

    ``key``: the public key that its peer has shown; "" where none is asked for.
    """

    session: Session
    tick_at: float
    key: str = ""
    outbox: deque[list[Frame]] = field(default_factory=deque)


class Connections:
    """All connections by the transport's identity. Belongs to the broker's thread.

    A connection that breaks while it is written to stays, so that what it sent before can still
    be read; nothing more is written to it. ``take_broken`` hands it over.
    """

    def __init__(self) -> None:
        self._open: dict[PeerId, Connection] = {}
        self._broken: dict[PeerId, str] = {}

    def get(self, peer: PeerId) -> Connection | None:
        return self._open.get(peer)

    def all(self) -> list[tuple[PeerId, Connection]]:
        return list(self._open.items())

    def add(self, peer: PeerId, connection: Connection) -> None:
        self._open[peer] = connection

    def drop(self, peer: PeerId) -> None:
        self._open.pop(peer, None)
        self._broken.pop(peer, None)

    def any_broken(self) -> bool:
        return bool(self._broken)

    def take_broken(self) -> list[tuple[PeerId, str]]:
        """Connections that broke, and why; each once."""
        broken, self._broken = list(self._broken.items()), {}
        return broken

    def waiting(self) -> bool:
        """Whether anything waits to be written."""
        return any(connection.outbox for connection in self._open.values())

    def next_tick(self) -> float:
        """When the first session wants to know the time."""
        return min((each.tick_at for each in self._open.values()), default=float("inf"))

    def write(
        self, listener: Listener, peer: PeerId, connection: Connection, frames: list[Frame]
    ) -> None:
        """Writes now, or later where the peer does not read fast enough."""
        if peer in self._broken:
            return
        if not connection.outbox:
            sent = listener.send(peer, frames)
            if sent is Sent.TAKEN:
                return
            if sent is Sent.GONE:
                self._break(peer, "the connection was closed")
                return
        if len(connection.outbox) >= OUTBOX_MESSAGES:
            self._break(peer, f"it did not read {OUTBOX_MESSAGES} messages")
            return
        connection.outbox.append(frames)

    def retry(self, listener: Listener) -> None:
        """Writes what waits, as far as the peers take it."""
        for peer, connection in self._open.items():
            while connection.outbox:
                sent = listener.send(peer, connection.outbox[0])
                if sent is Sent.FULL:
                    break
                if sent is Sent.GONE:
                    self._break(peer, "the connection was closed")
                    break
                connection.outbox.popleft()

    def say_goodbye(self, listener: Listener, reason: str, deadline: float) -> None:
        """Ends every open session and writes what waits until ``deadline`` (``monotonic``)."""
        now = time.monotonic()
        for peer, connection in self._open.items():
            if connection.session.state is State.OPEN:
                self.write(
                    listener, peer, connection, connection.session.send(Goodbye(reason), now)
                )
        while self.waiting() and time.monotonic() < deadline:
            listener.wait(RETRY_FULL)
            self.retry(listener)

    def _break(self, peer: PeerId, reason: str) -> None:
        if peer in self._open:
            self._broken[peer] = reason
            self._open[peer].outbox.clear()
