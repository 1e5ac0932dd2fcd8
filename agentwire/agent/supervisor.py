"""Keeps the agents of one run alive: starts them, watches them, restarts them, stops them.

Agents are watched in three ways: the exit of their process, silence on the bus, and batches that
take too long. A failed process is killed and its epoch forgotten by the broker before the next
incarnation starts. Whatever fails meanwhile, supervision goes on: an agent is restarted within its
budget, or it is down.

No child process outlives its supervisor: it exits at the end of its stdin, and on Linux the kernel
kills it with its parent. Children have their own sessions, so Ctrl-C reaches only the runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from agentwire.agent.launching.events import AgentDown, AgentEvent, PeerEvent
from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.local import AgentProcess
from agentwire.agent.launching.placement import BrokerControl, Launcher
from agentwire.agent.launching.remote import RemoteAgent
from agentwire.bus.events import BrokerEvent
from agentwire.errors import AgentwireError
from agentwire.spec.agent import AgentSpec
from agentwire.telemetry.faults import Faults, describe


class Supervisor:
    """The agents of one run.

    Args:
        specs: agents by name.
        broker: started.
        run: id of the run.
        logs: folder for <agent>.log; created if missing.
        on_event: called in the event loop's thread.
        limits: time limits and restart budget.
        remote: agents that run on other machines.
        launcher: starts the remote ones; None: the user does.
        faults: counts errors of ``on_event``, and bugs.
    """

    def __init__(
        self,
        specs: Mapping[str, AgentSpec],
        broker: BrokerControl,
        *,
        run: bytes,
        logs: Path,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits | None = None,
        remote: Collection[str] = (),
        launcher: Launcher | None = None,
        faults: Faults | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        limits = limits or AgentLimits()
        self._faults = faults or Faults()
        self._on_event = on_event

        def agent(name: str, spec: AgentSpec) -> AgentProcess | RemoteAgent:
            if name in remote:
                return RemoteAgent(spec, broker, launcher, self._report, limits)
            log = logs / f"{name}.log"
            return AgentProcess(spec, broker, run, log, self._report, limits)

        self._agents = {name: agent(name, spec) for name, spec in specs.items()}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Starts every agent. Call it in the event loop's thread."""
        for name, agent in self._agents.items():
            run = self._supervise(name, agent)
            self._tasks[name] = asyncio.create_task(run, name=f"run {name}")

    def handle(self, event: BrokerEvent) -> None:
        """Handles an event of the broker. Call it in the event loop's thread."""
        if isinstance(event, PeerEvent):
            agent = self._agents.get(event.name)
            if agent is not None:
                agent.handle(event)

    def fail(self, reason: str) -> None:
        """The bus is lost: every agent is down and is stopped."""
        for name, agent in self._agents.items():
            self._give_up(name, agent, reason)

    def _report(self, event: AgentEvent) -> None:
        with self._faults.contain("agent events"):
            self._on_event(event)

    async def _supervise(self, name: str, agent: AgentProcess | RemoteAgent) -> None:
        try:
            await agent.run()
        except Exception as error:  # a bug; what can be expected to fail, run() handles
            self._faults.record("supervision", error)
            agent.kill()
            self._give_up(name, agent, f"its supervision failed: {describe(error)}")

    def _give_up(self, name: str, agent: AgentProcess | RemoteAgent, reason: str) -> None:
        agent.error = agent.error or AgentwireError(f"The agent {name} is down: {reason}.")
        agent.begin_stop()
        self._report(AgentDown(name, reason, agent.error))

    async def ready(self) -> None:
        """Waits until every agent is ready. Raises an AgentwireError if one does not start; an
        InputError if the user can fix that."""
        waits = [asyncio.ensure_future(agent.ready.wait()) for agent in self._agents.values()]
        running = list(self._tasks.values())  # one that ends now has given up or raised
        try:
            while not all(wait.done() for wait in waits):
                await asyncio.wait({*waits, *running}, return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    if task.done():
                        task.result()  # raises CancelledError
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
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def kill(self) -> None:
        """Kills every child process without waiting, when a stop was interrupted."""
        for agent in self._agents.values():
            agent.kill()
