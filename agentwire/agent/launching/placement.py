"""Which agents run on other machines, and who starts them there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from agentwire.bus.access import RemoteAccess
from agentwire.spec.agent import AgentSpec


class Launcher(Protocol):
    """Starts agents elsewhere. Every call may block, and is made in a thread of its own."""

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        """Asks for the agent, and returns before it runs.

        Args:
            endpoint: of the bus, where it joins.
            restarts: how often it may be started again.

        Raises:
            AgentwireError: it can never be placed.
        """
        ...

    def wait(self, name: str) -> str:
        """Returns when the agent is gone for good: why, or the reason of its Goodbye."""
        ...

    def where(self, name: str) -> str:
        """Why it is not there yet, in words for its user; "" if nothing is known."""
        ...

    def restart(self, name: str) -> None:
        """Ends its process, so that it is started again."""
        ...

    def stop(self, name: str) -> None:
        """Ends it for good."""
        ...


@dataclass(frozen=True, slots=True)
class Remote:
    """Which agents of a run are on other machines, and where they join.

    Attributes:
        access: address, keys and list.
        agents: their names.
        launcher: starts them; None: somebody else does (``agentwire agent``).
    """

    access: RemoteAccess
    agents: frozenset[str]
    launcher: Launcher | None = None

    @classmethod
    def of(cls, access: RemoteAccess, agents: Collection[str]) -> Remote:
        return cls(access, frozenset(agents))
