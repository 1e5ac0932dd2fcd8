"""What the broker tells its owner: who came, who is ready, who was lost, what was agreed.

Events are called out in the broker's own thread, in the order in which they happened. The client
keeps the ledger of outstanding requests, so ``PeerLost`` and ``PeerGone`` are its signal to send
again: whatever was queued to or from that incarnation has been dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agentwire.errors import NackCode
from agentwire.wire.messages import BridgeIdentity, ModelIdentity


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """An incarnation was let in; an agent still loads its model."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """An agent that is not ready yet says what it is doing; ``fraction`` is in 0..1."""

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
class PeerBusy:
    """How long an agent's compute loop has worked without finishing a batch, in milliseconds.

    Comes with every Ping and Pong of a busy agent, and once with 0 when it is idle again.
    """

    name: str
    epoch: int
    busy_ms: int


@dataclass(frozen=True, slots=True)
class PeerLost:
    """An incarnation is gone without a word: silent, dead, replaced, or cut off for ``reason``.

    Work that was queued to it or came from it and was still queued here has been dropped.

    Attributes:
        silent: nothing came from it for too long, so it may hang; otherwise its connection broke.
    """

    name: str
    epoch: int
    reason: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class PeerGone:
    """An incarnation said Goodbye. Queued work of its wires has been dropped, as for PeerLost."""

    name: str
    epoch: int
    reason: str


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
    """The broker's thread ended by a bug (never by what a peer sent). ``stop`` raises it too."""

    error: BaseException


BrokerEvent: TypeAlias = (
    PeerConnected
    | PeerProgress
    | PeerReady
    | PeerBusy
    | PeerLost
    | PeerGone
    | WireAgreed
    | WireRefused
    | BrokerFailed
)
