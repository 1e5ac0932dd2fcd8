"""What the bus asks of a transport: multipart messages, a wake-up, and honest refusals.

``zmq.py`` is the real one and ``memory.py`` the in-process one for tests. A ``Listener`` or a
``Link`` belongs to one thread; other threads may call ``wake``, and ``send`` of a link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeAlias

Frame: TypeAlias = bytes | memoryview
Frames: TypeAlias = Sequence[Frame]


class Sent(Enum):
    """What became of one message. A message is taken whole or not at all."""

    TAKEN = auto()  # the transport has it
    FULL = auto()  # the peer does not read: its queue is at the high-water mark; try later
    GONE = auto()  # there is no such peer (any more)


class Listener(Protocol):
    """The broker's side: one socket, many peers, each with an identity chosen by the transport.

    Attributes:
        last_key: the public key that whoever sent the last message has; "" where none is asked for.
    """

    last_key: str

    @property
    def endpoint(self) -> str:
        """Where peers connect; holds the real port where port 0 was asked for."""
        ...

    def wait(self, seconds: float) -> None:
        """Returns when a message can be received, after ``wake``, or when the time is up."""
        ...

    def receive(self) -> tuple[bytes, list[Frame]] | None:
        """The next message and who sent it; None if there is none now. Never blocks."""
        ...

    def send(self, peer: bytes, frames: Frames) -> Sent:
        """Hands one message to the transport. Never blocks."""
        ...

    def wake(self) -> None:
        """Makes ``wait`` return. Thread-safe; does nothing after ``close``."""
        ...

    def close(self, linger: float) -> None:
        """Closes the socket; what was taken is delivered within ``linger`` seconds or dropped."""
        ...


class Link(Protocol):
    """An endpoint's side: one socket to one broker. Who calls ``send`` in turn keeps the order.

    Attributes:
        descriptors: files that become readable when ``wait`` would return; none where there are
            none.
    """

    @property
    def descriptors(self) -> tuple[int, ...]: ...

    def wait(self, seconds: float, *, writable: bool = False) -> None:
        """As in ``Listener``; with ``writable`` it also returns when ``send`` may succeed."""
        ...

    def receive(self) -> list[Frame] | None:
        """The next message; None if there is none now. Never blocks."""
        ...

    def send(self, frames: Frames) -> Sent:
        """Hands one message to the transport. Never blocks."""
        ...

    def wake(self) -> None:
        """Makes ``wait`` return. Thread-safe; does nothing after ``close``."""
        ...

    def close(self, linger: float) -> None:
        """Closes the socket; what was taken is delivered within ``linger`` seconds or dropped."""
        ...


class Connects(Protocol):
    """The half of a transport that an endpoint needs."""

    def connect(self, endpoint: str) -> Link:
        """Opens an endpoint's socket; returns before the connection stands."""
        ...


@dataclass(frozen=True, slots=True)
class Inside:
    """Connects to a listener of this process, whatever the address says."""

    link: Callable[[], Link]

    def connect(self, endpoint: str) -> Link:
        return self.link()


class Transport(Connects, Protocol):
    """Opens sockets. Each call owns its resources: nothing is shared or process-global."""

    def listen(self, endpoint: str) -> Listener:
        """Opens the broker's socket.

        Raises:
            InputError: the endpoint cannot be used.
        """
        ...

    def connect(self, endpoint: str) -> Link:
        """Opens an endpoint's socket; returns before the connection stands."""
        ...
