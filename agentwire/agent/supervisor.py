"""Keeps the agents of one run alive: starts them, watches them, restarts them, stops them.

Agents are watched in three ways: the exit of their process, silence on the bus, and batches that
take too long. A failed process is killed and its epoch forgotten by the broker before the next
incarnation starts.

No child process outlives its supervisor: it exits at the end of its stdin, and on Linux the kernel
kills it with its parent. Children have their own sessions, so Ctrl-C reaches only the runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from agentwire.agent.launching.events import AgentEvent, PeerEvent
from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.local import AgentProcess
from agentwire.agent.launching.placement import BrokerControl, Launcher
from agentwire.agent.launching.remote import RemoteAgent
from agentwire.bus.events import BrokerEvent
from agentwire.spec.agent import AgentSpec


class Supervisor:
    """The agents of one run.

    Args:
        specs: agents by name.
        broker: started.
        run, token: of the run; agents need both to join its bus.
        logs: folder for <agent>.log; created if missing.
        on_event: called in the event loop's thread.
        limits: time limits and restart budget.
        remote: agents that run on other machines.
        launcher: starts the remote ones; None: the user does.
    """

    def __init__(
        self,
        specs: Mapping[str, AgentSpec],
        broker: BrokerControl,
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
        limits = limits or AgentLimits()

        def agent(name: str, spec: AgentSpec) -> AgentProcess | RemoteAgent:
            if name in remote:
                return RemoteAgent(spec, broker, launcher, on_event, limits)
            log = logs / f"{name}.log"
            return AgentProcess(spec, broker, run, token, log, on_event, limits)

        self._agents = {name: agent(name, spec) for name, spec in specs.items()}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Starts every agent. Call it in the event loop's thread."""
        for name, agent in self._agents.items():
            self._tasks[name] = asyncio.create_task(agent.run(), name=f"run {name}")

    def handle(self, event: BrokerEvent) -> None:
        """Handles an event of the broker. Call it in the event loop's thread."""
        if isinstance(event, PeerEvent):
            agent = self._agents.get(event.name)
            if agent is not None:
                agent.handle(event)

    async def ready(self) -> None:
        """Waits until every agent is ready.

        Raises:
            InputError: an agent cannot start for a reason that the user can fix.
            AgentwireError: an agent does not start.
        """
        waits = [asyncio.ensure_future(agent.ready.wait()) for agent in self._agents.values()]
        running = list(self._tasks.values())  # one that ends now has given up or raised
        try:
            while not all(wait.done() for wait in waits):
                await asyncio.wait({*waits, *running}, return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    if task.done():
                        task.result()
                for agent in self._agents.values():
                    if agent.error is not None:
                        raise agent.error
        finally:
            for wait in waits:
                wait.cancel()

    async def stop(self) -> None:
        """Stops every agent: SIGTERM, time to finish, SIGKILL."""
        for agent in self._agents.values():
            agent.begin_stop()
        results = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def kill(self) -> None:
        """Kills every child process without waiting, when a stop was interrupted."""
        for agent in self._agents.values():
            agent.kill()
