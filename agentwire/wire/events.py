"""What a session tells the layer above. Compare lists of these in tests; act on them in the bus."""

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
class Greeted:
    """Broker: a peer said Hello. Check its name, token and epoch, then welcome or reject it."""

    hello: Hello
    epoch: int


@dataclass(frozen=True, slots=True)
class Announced:
    """Broker: an agent said Hello again, now with its model: it is ready for work."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Opened:
    """Peer: the broker said Welcome. From now on anything in ``MAY_SEND`` may be sent."""

    welcome: Welcome


@dataclass(slots=True)
class Received:
    """A message for the layer above; ``sealed``, at the broker: for ``Session.send`` of it."""

    message: Message
    envelope: Envelope
    sealed: Sealed | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Busy:
    """How long the other side's compute loop has worked without finishing a batch."""

    busy_ms: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages were lost before the next event's: their requests must be tried again."""

    expected: int
    received: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A message whose number had come already: dropped."""

    seq: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was refused and dropped. The Nack that answers it follows as ``Outgoing``.

    Attributes:
        rows, wire, origin: whose requests it carried, as far as could be trusted.
    """

    code: NackCode
    reason: str
    wire: str = ""
    rows: tuple[Row, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over by what the other side said: Goodbye, or a Nack to the Hello.

    Attributes:
        code: the code of that Nack; None after a Goodbye.
    """

    reason: str
    code: NackCode | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is over because nothing has come for too long."""

    reason: str


Event: TypeAlias = (
    Outgoing
    | Greeted
    | Announced
    | Opened
    | Received
    | Busy
    | Gap
    | Duplicate
    | Refused
    | Closed
    | Lost
)
