"""Where agents run: launchers, and what the supervisor needs of the broker."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from agentwire.bus.transport import RemoteAccess
from agentwire.spec.agent import AgentSpec


class BrokerControl(Protocol):
    """Admission of agents at the broker."""

    @property
    def endpoint(self) -> str: ...
    @property
    def remote_endpoint(self) -> str: ...
    def expect(self, name: str, epoch: int, token: str = "") -> None: ...
    def expect_remote(self, name: str) -> None: ...
    def disconnect(self, name: str, epoch: int) -> None: ...


class Launcher(Protocol):
    """Starts agents on other machines. Every method may block and is called in a thread."""

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        """Requests an agent that joins the bus at ``endpoint``, and returns before it runs. Raises
        an AgentwireError if it can never be placed."""

    def wait(self, name: str) -> str:
        """Blocks until the agent has ended for good. Returns why, or the reason of its Goodbye."""

    def pending_reason(self, name: str) -> str:
        """Why the agent does not run yet, for the user; "" if unknown."""

    def restart(self, name: str) -> None:
        """Kills its process; the launcher starts another."""

    def stop(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Remote:
    """Agents of a run on other machines.

    Attributes:
        access: the broker's address and keys, and who may connect.
        agents: their names.
        launcher: starts them; None: the user does (``agentwire agent``).
    """

    access: RemoteAccess
    agents: frozenset[str]
    launcher: Launcher | None = None


class Cluster(Protocol):
    """What ``spec.launchers`` registers: called with the scenario's ``address``."""

    def place(self, agents: Collection[str]) -> Remote | None:
        """Where these agents run; None: as child processes on this machine."""

    def close(self) -> None: ...


class LocalMachine:
    """``launcher: local``: every agent is a child process."""

    def __init__(self, address: str) -> None: ...

    def place(self, agents: Collection[str]) -> None: ...

    def close(self) -> None: ...
