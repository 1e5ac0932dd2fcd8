"""Events in the life of an agent, reported to the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agentwire.bus.events import PeerBusy, PeerLeft, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError, InputError
from agentwire.wire.messages import ModelIdentity


@dataclass(frozen=True, slots=True)
class AgentStarted:
    name: str
    epoch: int
    pid: int


@dataclass(frozen=True, slots=True)
class AgentLoading:
    name: str
    epoch: int
    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class AgentReady:
    name: str
    epoch: int
    pid: int
    model: ModelIdentity


@dataclass(frozen=True, slots=True)
class AgentDied:
    """An incarnation ended, whoever noticed: its process, the bus, a time limit or a launcher.

    Attributes:
        crashed: False after an orderly exit or a broken connection. Otherwise a request in flight
            may be the cause.
        restart_in: seconds until the next incarnation starts; None: there is none.
        error: what the user must fix before the agent can start.
    """

    name: str
    epoch: int
    pid: int
    reason: str
    crashed: bool = True
    restart_in: float | None = None
    error: InputError | None = None


@dataclass(frozen=True, slots=True)
class AgentDown:
    """The agent has used up its restarts. ``error`` is for the user."""

    name: str
    reason: str
    error: AgentwireError


PeerEvent: TypeAlias = PeerReady | PeerLost | PeerLeft | PeerBusy | PeerProgress
"""What the broker reports about one agent."""
AgentEvent: TypeAlias = AgentStarted | AgentLoading | AgentReady | AgentDied | AgentDown
