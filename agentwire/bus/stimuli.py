"""The input and output of ``routing``: what can happen to the broker, and what it then does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agentwire.bus.events import BrokerEvent
from agentwire.errors import NackCode
from agentwire.wire.codec import Sealed
from agentwire.wire.messages import Hello, Message, Row

PeerId: TypeAlias = bytes
"""The transport's identity of one connection: one incarnation of one peer."""


# -- stimuli --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """Somebody said Hello on a new connection.

    Attributes:
        keyed: the name that the key of this connection stands for; None: it has no key.
    """

    peer: PeerId
    epoch: int
    hello: Hello
    keyed: str | None = None


@dataclass(slots=True)
class Said:
    """A peer that was let in sent a message (among them the Hello that makes an agent ready).

    Attributes:
        sealed: how it came, to go on like that; None where it has to be packed anew.
    """

    peer: PeerId
    message: Message
    sealed: Sealed | None = None


@dataclass(frozen=True, slots=True)
class Garbled:
    """A peer that was let in sent what its session refused; the peer was answered already."""

    peer: PeerId
    code: NackCode
    reason: str
    wire: str = ""
    rows: tuple[Row, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """A Ping or Pong told how long a peer's compute loop has been busy."""

    peer: PeerId
    busy_ms: int


@dataclass(frozen=True, slots=True)
class Departed:
    """A connection is over: by Goodbye, because it fell silent, or because it broke."""

    peer: PeerId
    reason: str
    goodbye: bool = False
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Expect:
    """The supervisor is about to start this incarnation."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Invite:
    """An agent of this name runs elsewhere: every new incarnation of it is let in, by its key."""

    name: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The process of this incarnation has ended."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; about once a second is enough."""


Stimulus: TypeAlias = (
    Arrived | Said | Garbled | Reported | Departed | Expect | Invite | Forget | Tick
)


# -- instructions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admit:
    """Welcome this peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Reject:
    """Turn this peer away and forget it."""

    peer: PeerId
    code: NackCode
    reason: str


@dataclass(slots=True)
class Send:
    """Send this message to this peer; ``sealed``: nothing but its origin has changed since."""

    peer: PeerId
    message: Message
    sealed: Sealed | None = None


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Forget this peer's session; what comes from it later is dropped."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the owner."""

    event: BrokerEvent


Instruction: TypeAlias = Admit | Reject | Send | Dismiss | Emit
