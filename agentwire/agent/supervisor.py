"""Keeps the agent processes of one run alive: spawns, watches, restarts within a budget, stops.

Three layers of watching: the process itself (its exit), the bus (PeerLost: nothing came from it),
and its compute loop (busy for too long behind a healthy socket). Whatever is wrong, the process is
killed first and forgotten by the broker, and only then is the next incarnation let in.

No process outlives its supervisor: children see the end of their stdin, and on Linux the kernel
kills them with their parent. They have sessions of their own, so Ctrl-C reaches the runner alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from agentwire.agent.launching.events import AgentEvent, AgentLimits
from agentwire.agent.launching.launched import LaunchedAgent
from agentwire.agent.launching.local import AgentProcess, Gatekeeper
from agentwire.agent.launching.placement import Launcher
from agentwire.agent.launching.remote import RemoteAgent
from agentwire.bus.events import (
    BrokerEvent,
    PeerBusy,
    PeerGone,
    PeerLost,
    PeerProgress,
    PeerReady,
)
from agentwire.spec.agent import AgentSpec


class Supervisor:
    """The agents of one run.

    Args:
        specs: what each agent is born with, by name.
        broker: started.
        run, token: of the run; they go into each birth.
        logs: folder for <agent>.log; made if it is not there.
        on_event: told, in the loop's thread, what happens to agents.
        limits: how long they may take.
        remote: agents that run on other machines: they are awaited, not started.
        launcher: starts those elsewhere; None: somebody else does.
    """

    def __init__(
        self,
        specs: Mapping[str, AgentSpec],
        broker: Gatekeeper,
        *,
        run: bytes,
        token: str,
        logs: Path,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits | None = None,
        remote: Collection[str] = (),
        launcher: Launcher | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._limits = limits or AgentLimits()

        def keeper(name: str, spec: AgentSpec) -> AgentProcess | RemoteAgent:
            if name not in remote:
                log = logs / f"{name}.log"
                return AgentProcess(spec, broker, run, token, log, on_event, self._limits)
            if launcher is None:
                return RemoteAgent(name, broker, on_event, self._limits)
            return LaunchedAgent(
                spec, broker, lambda: broker.remote_endpoint, launcher, on_event, self._limits
            )

        self._keepers = {name: keeper(name, spec) for name, spec in specs.items()}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Spawns every agent. Call it in the event loop's thread."""
        for name, keeper in self._keepers.items():
            self._tasks[name] = asyncio.create_task(keeper.keep(), name=f"keep {name}")

    def handle(self, event: BrokerEvent) -> None:
        """Takes in what the broker saw. Call it in the event loop's thread."""
        if isinstance(event, PeerReady | PeerLost | PeerGone | PeerBusy | PeerProgress):
            keeper = self._keepers.get(event.name)
            if keeper is not None:
                keeper.handle(event)

    async def ready(self) -> None:
        """Waits until every agent is ready.

        Raises:
            InputError: an agent cannot start for a reason that the user can mend.
            AgentwireError: an agent does not start.
        """
        waits = [asyncio.ensure_future(keeper.up.wait()) for keeper in self._keepers.values()]
        keeping = list(self._tasks.values())  # a keeper that ends now has given up, or has a bug
        try:
            while not all(wait.done() for wait in waits):
                await asyncio.wait({*waits, *keeping}, return_when=asyncio.FIRST_COMPLETED)
                for task in keeping:
                    if task.done():
                        task.result()
                for keeper in self._keepers.values():
                    if keeper.error is not None:
                        raise keeper.error
        finally:
            for wait in waits:
                wait.cancel()

    async def stop(self) -> None:
        """Ends every agent: SIGTERM, time to finish, SIGKILL. No process is left."""
        for keeper in self._keepers.values():
            keeper.begin_stop()
        results = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def kill(self) -> None:
        """Kills every agent at once, without waiting: the last resort of an interrupted stop."""
        for keeper in self._keepers.values():
            keeper.kill()
