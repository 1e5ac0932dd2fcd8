"""What happened in a session, for the layer above; the router takes these events as they are.

``PeerBusy``, ``PeerLeft`` and ``PeerLost`` go on unchanged to the broker's owner. ``name`` and
``epoch`` are those of the other end; in a peer's session that is the broker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from agentwire.errors import NackCode
from agentwire.wire.codec import Sealed
from agentwire.wire.messages import Envelope, Hello, Message, Row, Welcome


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Frames to write now, before the next call."""

    frames: list[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """Broker: the first Hello. Check name, token and epoch, then welcome or reject the peer."""

    hello: Hello
    epoch: int


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Peer: the broker sent Welcome. From now on anything in ``MAY_SEND`` may be sent."""

    welcome: Welcome


@dataclass(slots=True)
class MessageReceived:
    """A message for the layer above, among them an agent's second Hello."""

    message: Message
    envelope: Envelope
    # broker: the frames as received, for ``Session.send`` to the next hop
    sealed: Sealed | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class MessageRefused:
    """A message was refused and dropped. The Nack that answers it follows as ``Outgoing``.

    ``rows``, ``wire`` and ``origin`` are those of its requests, as far as they can be trusted.
    """

    code: NackCode
    reason: str
    wire: str = ""
    rows: tuple[Row, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class DuplicateDropped:
    """A message whose sequence number had been received before was dropped."""

    seq: int


@dataclass(frozen=True, slots=True)
class PeerBusy:
    """How long the peer's compute loop has worked without finishing a batch, in milliseconds.

    The owner gets it with every Ping and Pong of a busy agent, and once with 0 when it is idle.
    """

    name: str
    epoch: int
    busy_ms: int


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer ended the session on purpose: by Goodbye, or by a Nack to the Hello."""

    name: str
    epoch: int
    reason: str
    code: NackCode | None = None  # of that Nack; None after a Goodbye


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The peer is gone without a Goodbye: silent, dead, replaced or disconnected.

    Attributes:
        silent: nothing was received for too long, so the peer may hang; otherwise its connection
            or its process ended.
    """

    name: str
    epoch: int
    reason: str
    silent: bool = False


Event: TypeAlias = (
    Outgoing
    | HelloReceived
    | SessionOpened
    | MessageReceived
    | MessageRefused
    | DuplicateDropped
    | PeerBusy
    | PeerLeft
    | PeerLost
)
