"""What the router returns for the broker to carry out, and what the owner asks of the broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from agentwire.bus.events import BrokerEvent
from agentwire.bus.transport import PeerId
from agentwire.errors import NackCode
from agentwire.wire.codec import Sealed
from agentwire.wire.messages import Message


class Command(NamedTuple):
    """What the owner tells the router; see the methods of ``Broker`` of these names."""

    action: Literal["expect", "expect_remote", "disconnect"]
    name: str
    epoch: int = 0
    token: str = ""


@dataclass(frozen=True, slots=True)
class Admit:
    """Send Welcome to this peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer this peer's Hello with a Nack and drop its session."""

    peer: PeerId
    code: NackCode
    reason: str


@dataclass(slots=True)
class Send:
    """Send this message to this peer; ``sealed``: as received, if only its origin changed."""

    peer: PeerId
    message: Message
    sealed: Sealed | None = None


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Drop this peer's session; what arrives from it later is dropped."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Emit:
    """Pass this event to the owner."""

    event: BrokerEvent


Instruction: TypeAlias = Admit | Reject | Send | Disconnect | Emit
