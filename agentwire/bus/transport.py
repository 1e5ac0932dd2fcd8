"""What the bus needs from a transport, and the registry of transports by URL scheme.

``zmq.py`` implements ``ipc://`` and ``tcp://``; ``memory.py`` is an in-process transport for
tests. A ``Listener`` or a ``Link`` belongs to one thread; other threads may call ``wake``, and
``send`` of a link.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol, TypeAlias, runtime_checkable

from agentwire.spec.registry import Registry

Frame: TypeAlias = bytes | memoryview
Frames: TypeAlias = Sequence[Frame]
PeerId: TypeAlias = bytes
"""The transport's identity of one connection: one incarnation of one peer."""
IN_PROCESS: Final = "in-process"
"""``Listener.last_key`` of a peer in the listener's own process."""


class AllowedKeys(Protocol):
    """The public keys that may connect (``keys.AllowList``)."""

    def name_of(self, key: str) -> str | None:
        """The name that a public key is registered for; None if it is not. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """Where peers of other machines connect, and with which keys.

    Attributes:
        endpoint: ``tcp://…`` to listen on, in addition to the run's ipc socket.
        secret: the bus's own secret key (Z85).
        allowed: the public keys that may connect, by name.
    """

    endpoint: str
    secret: str = field(repr=False)
    allowed: AllowedKeys


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """The keys a peer needs to connect to such a bus; all in Z85."""

    public: str
    secret: str = field(repr=False)
    server: str


class Sent(Enum):
    """The result of sending one message. A message is taken whole or not at all."""

    TAKEN = auto()  # the transport has it
    FULL = auto()  # the peer does not read: its queue is at the high-water mark; try later
    GONE = auto()  # there is no such peer (any more)


class _Closable(Protocol):
    def wake(self) -> None:
        """Makes ``wait`` return. Thread-safe; does nothing after ``close``."""
        ...

    def close(self, linger: float) -> None:
        """Closes the socket; taken messages are delivered within ``linger`` seconds or dropped."""
        ...


class Listener(_Closable, Protocol):
    """The broker's side: one socket, many peers, each with an identity chosen by the transport.

    Attributes:
        last_key: public key of the last message's sender, or ``IN_PROCESS``; "" if it has none.
    """

    last_key: str

    @property
    def endpoint(self) -> str:
        """Where peers connect; holds the real port if port 0 was asked for."""
        ...

    def wait(self, seconds: float) -> None:
        """Returns when a message can be received, after ``wake``, or when the time is up."""
        ...

    def receive(self) -> tuple[PeerId, list[Frame]] | None:
        """The next message and its sender; None if there is none now. Never blocks."""
        ...

    def send(self, peer: PeerId, frames: Frames) -> Sent:
        """Hands one message to the transport. Never blocks."""
        ...


@runtime_checkable
class Cutting(Protocol):
    """A listener that can end the connection of one peer."""

    def admitted(self, peer: PeerId) -> None:
        """The last message came from this peer, which has a session from now on."""
        ...

    def released(self, peer: PeerId, cut: bool) -> None:
        """Its session has ended; with ``cut`` its connection ends, with what waits in it."""
        ...


class Link(_Closable, Protocol):
    """An endpoint's side: one socket to one broker. Calls of ``send`` in turn keep their order.

    Attributes:
        descriptors: files that become readable when ``wait`` would return; may be empty.
    """

    @property
    def descriptors(self) -> tuple[int, ...]: ...

    def wait(self, seconds: float, *, writable: bool = False) -> None:
        """As in ``Listener``; with ``writable`` it also returns when ``send`` may succeed."""
        ...

    def receive(self) -> list[Frame] | None:
        """The next message; None if there is none now. Never blocks."""
        ...

    def send(self, frames: Frames) -> Sent: ...


@runtime_checkable
class Connector(Protocol):
    """The half of a transport that an endpoint needs."""

    def connect(self, endpoint: str) -> Link:
        """Opens an endpoint's socket; returns before the connection is established."""
        ...


class Transport(Connector, Protocol):
    """Opens sockets. Each call owns its resources: nothing is shared or process-global."""

    def listen(self, endpoint: str) -> Listener:
        """Opens the broker's socket. Raises an InputError if the endpoint cannot be used."""
        ...


class TransportFactory(Protocol):
    """Makes a transport.

    Args:
        remote: broker: where peers of other machines connect, and their keys.
        keys: peer: the keys to present when connecting.
    """

    def __call__(
        self, *, remote: RemoteAccess | None = None, keys: PeerKeys | None = None
    ) -> Transport: ...


TRANSPORTS: Registry[TransportFactory] = Registry("agentwire.transports", "transport")
"""By URL scheme. Built-in ones are imported on first use: most modules need no pyzmq."""
TRANSPORTS.lazy("ipc", "agentwire.bus.zmq:ZmqTransport")
TRANSPORTS.lazy("tcp", "agentwire.bus.zmq:ZmqTransport")


def transport_for(
    endpoint: str, *, remote: RemoteAccess | None = None, keys: PeerKeys | None = None
) -> Transport:
    """The transport of an endpoint's URL scheme. Raises a ScenarioError if none is registered."""
    return TRANSPORTS.get(endpoint.partition("://")[0])(remote=remote, keys=keys)
