"""What the broker tells its owner: who connected, is ready, left or was lost, what was agreed.

The broker calls the owner in its own thread, in the order in which the events happened. After
``PeerLost`` and ``PeerLeft`` the client sends outstanding requests again: work that was queued to
or from that incarnation has been dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agentwire.errors import NackCode
from agentwire.wire.events import PeerBusy, PeerLeft, PeerLost
from agentwire.wire.messages import BridgeIdentity, ModelIdentity

__all__ = [
    "BrokerEvent",
    "BrokerFailed",
    "PeerBusy",
    "PeerConnected",
    "PeerLeft",
    "PeerLost",
    "PeerProgress",
    "PeerReady",
    "WireAgreed",
    "WireRefused",
]


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """An incarnation was admitted; an agent still loads its model."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """What an agent does before it is ready; ``fraction`` is in 0..1."""

    name: str
    epoch: int
    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class PeerReady:
    """An agent has loaded its model and can work."""

    name: str
    epoch: int
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class WireAgreed:
    """The receiver of ``wire`` accepted the sender's bridge (again after each restart)."""

    wire: str
    bridge: BridgeIdentity


@dataclass(frozen=True, slots=True)
class WireRefused:
    """The receiver of ``wire`` refused the sender's bridge."""

    wire: str
    code: NackCode
    reason: str


@dataclass(frozen=True, slots=True)
class BrokerFailed:
    """A bug (never what a peer sent) ended the broker's thread. ``stop`` raises the error too."""

    error: BaseException


BrokerEvent: TypeAlias = (
    PeerConnected
    | PeerProgress
    | PeerReady
    | PeerBusy
    | PeerLost
    | PeerLeft
    | WireAgreed
    | WireRefused
    | BrokerFailed
)
