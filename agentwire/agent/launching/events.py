"""Events in the life of an agent, reported to the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agentwire.errors import AgentwireError, InputError
from agentwire.wire.messages import ModelIdentity


@dataclass(frozen=True, slots=True)
class AgentStarted:
    name: str
    epoch: int
    pid: int


@dataclass(frozen=True, slots=True)
class AgentLoading:
    """Progress of loading; ``fraction`` of ``stage`` in 0..1."""

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
    """The agent will not start again. ``error`` is for the user."""

    name: str
    reason: str
    error: AgentwireError


AgentEvent: TypeAlias = AgentStarted | AgentLoading | AgentReady | AgentDied | AgentDown
