"""What happens to an agent process, as events, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from agentwire.agent.launching.restarts import RestartPolicy
from agentwire.errors import AgentwireError
from agentwire.wire.messages import ModelIdentity


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """How long an agent may take, in seconds.

    Attributes:
        load_s: from spawn to ready.
        progress_s: one batch; longer, and the agent counts as hung.
        stop_s: from SIGTERM to SIGKILL.
        restarts: how often it may die.
    """

    load_s: float = 900.0
    progress_s: float = 120.0
    stop_s: float = 8.0
    restarts: RestartPolicy = field(default_factory=RestartPolicy)


@dataclass(frozen=True, slots=True)
class AgentStarted:
    name: str
    epoch: int
    pid: int


@dataclass(frozen=True, slots=True)
class AgentLoading:
    """``fraction`` of ``stage`` is done, 0..1."""

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
    """An incarnation is gone; ``restart_in`` seconds from now the next one starts (None: none).

    ``crashed`` is False if it left in good order: then no request is to blame.
    """

    name: str
    epoch: int
    pid: int
    reason: str
    crashed: bool
    restart_in: float | None


@dataclass(frozen=True, slots=True)
class AgentDown:
    """The agent is gone for good. ``error`` is what to tell the user."""

    name: str
    reason: str
    error: AgentwireError


AgentEvent: TypeAlias = AgentStarted | AgentLoading | AgentReady | AgentDied | AgentDown
