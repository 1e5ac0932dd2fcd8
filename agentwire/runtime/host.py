"""What a runtime stands on: the broker, the agents' processes and the client of one run."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.placement import Remote
from agentwire.agent.supervisor import Supervisor
from agentwire.bus.broker import Broker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import BrokerEvent, BrokerFailed, WireAgreed, WireRefused
from agentwire.bus.recording import FILE_NAME, BusRecorder
from agentwire.bus.security import make_run_folder, new_token
from agentwire.runtime.client import Client
from agentwire.runtime.deadletters import DeadLetters
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission, Request
from agentwire.runtime.pending import EventLog
from agentwire.runtime.reply import AgentInfo, ProgressEvent
from agentwire.spec.agent import BusAddress
from agentwire.telemetry.journal import Journal
from agentwire.telemetry.live import LiveStats, write_status
from agentwire.wire.messages import Hello, Message, Role, TaskSpec
from agentwire.wire.session import Timing

CLIENT = "client"
SHOW_S = 1.0  # between two states of the status file


class Host:
    """Starts and stops everything, in an order that leaves nothing behind.

    Args:
        wiring: what runs.
        run_folder: for the journal and logs/; None: nowhere that stays.
        journal: told what happens; default: ``journal.jsonl`` in ``run_folder``.
        progress: told how agents start, die and start again.
        limits: how long agents may take and how often they may die.
        timing: heartbeats of the bus.
        admission: what may be outstanding at once.
        remote: agents that run on other machines, and where they join.
        record: write down what the bus takes in (``bus.jsonl`` in ``run_folder``).

    Attributes:
        agents: the latest incarnation of each agent that was ready once, replica by replica.
        client: to ask agents with; after ``start``.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        run_folder: Path | None,
        journal: EventLog | None,
        progress: Callable[[ProgressEvent], None],
        limits: AgentLimits | None,
        timing: Timing | None,
        admission: Admission | None = None,
        remote: Remote | None = None,
        record: bool = False,
    ) -> None:
        self.agents: dict[str, AgentInfo] = {}
        self._stats = LiveStats()
        self._showing: asyncio.Task[None] | None = None
        self._deployment = deployment
        self._run_folder = run_folder
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._progress = progress
        self._bus_folder = make_run_folder()
        folder = run_folder or self._bus_folder
        folder.mkdir(parents=True, exist_ok=True)
        self._own_journal: Journal | None = None
        if run_folder is not None and journal is None:
            journal = self._own_journal = Journal(run_folder / "journal.jsonl")
        self._journal = journal
        run, token = os.urandom(16), new_token()
        self._recorder = BusRecorder(folder / FILE_NAME, token) if record and run_folder else None
        self._broker = Broker(
            run=run,
            folder=self._bus_folder,
            wires=deployment.ends,
            token=token,
            agents=deployment.processes,
            on_event=self._from_broker,
            timing=timing,
            remote=remote.access if remote is not None else None,
            recorder=self._recorder,
        )
        self._supervisor = Supervisor(
            deployment.processes,
            self._broker,
            run=run,
            token=token,
            logs=folder / "logs",
            on_event=self._on_agent,
            limits=limits,
            remote=remote.agents if remote is not None else (),
            launcher=remote.launcher if remote is not None else None,
        )

        epochs = itertools.count(1)

        def connect(
            on_message: Callable[[Message, float], None], on_lost: Callable[[str], None]
        ) -> Endpoint:
            endpoint, epoch = self._broker.endpoint, next(epochs)
            address = BusAddress(endpoint=endpoint, run=run.hex(), epoch=epoch, token=token)
            hello = Hello(CLIENT, Role.CLIENT)
            return Endpoint(
                address,
                hello,
                on_message=on_message,
                on_lost=on_lost,
                transport=self._broker.in_process,
            )

        self._connect = connect
        self.client: Client | None = None

    async def start(self) -> Client:
        """Returns when every agent has loaded its model.

        Raises:
            InputError: an agent cannot start for a reason that the user can mend.
            AgentwireError: an agent does not start.
        """
        self._broker.start()
        client = self.client = Client(
            self._connect,
            self._deployment.wires_of_agents,
            self._journal,
            admission=self._admission,
            detours=self._deployment.detours,
            routes=self._deployment.routes,
            on_dead_letter=self._keep_dead_letter,
            stats=self._stats,
        )
        client.start()
        if self._run_folder is not None:
            self._showing = asyncio.create_task(self._show(self._run_folder))
        self._supervisor.start()
        await self._supervisor.ready()
        return client

    async def aclose(self, drain_s: float = 0.0) -> None:
        """Ends outstanding requests with CLOSING, then agents and bus. Safe to call twice.

        Args:
            drain_s: how long outstanding requests may still take; meanwhile none is admitted.
        """
        if self.client is not None and drain_s > 0:
            await self.client.drain(drain_s)
        if self._showing is not None:
            self._showing.cancel()
        with anyio.CancelScope(shield=True):  # an interrupted run must not leave processes behind
            try:
                if self.client is not None:
                    await self.client.close("the runtime is closed")
                await self._supervisor.stop()
            finally:
                self._supervisor.kill()
                try:
                    await asyncio.to_thread(self._broker.stop)
                finally:
                    if self._showing is not None and self._run_folder is not None:
                        self._show_now(self._run_folder, ended=True)
                        self._showing = None
                    if self._own_journal is not None:
                        self._own_journal.close()
                    if self._recorder is not None:
                        self._recorder.close()
                    shutil.rmtree(self._bus_folder, ignore_errors=True)

    @property
    def remote_endpoint(self) -> str:
        """Where agents of other machines join; "" if none do."""
        return self._broker.remote_endpoint

    def metrics(self) -> Mapping[str, int]:
        """Counters and gauges of the bus."""
        return self._broker.metrics()

    def status(self) -> dict[str, Any]:
        """Everything that can be told of this runtime now, as JSON holds it."""
        client = self.client
        return {
            "pid": os.getpid(),
            "agents": {name: asdict(info) for name, info in self.agents.items()},
            "bus": dict(self._broker.metrics()),
            "outstanding": 0 if client is None else client.outstanding,
            "credits": {} if client is None else client.credits,
            **self._stats.to_json(),
        }

    async def _show(self, folder: Path) -> None:
        """Keeps the status file of the run's folder fresh."""
        while True:
            self._show_now(folder, ended=False)
            await asyncio.sleep(SHOW_S)

    def _show_now(self, folder: Path, *, ended: bool) -> None:
        write_status(folder, self.status() | {"time": time.time(), "ended": ended})

    # -- news -------------------------------------------------------------------------------

    def _from_broker(self, event: BrokerEvent) -> None:
        """In the broker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_broker, event)

    def _on_broker(self, event: BrokerEvent) -> None:
        if self._supervisor is not None:
            self._supervisor.handle(event)
        match event:
            case WireAgreed(wire, bridge):
                self._write("wire_agreed", wire=wire, bridge=bridge.name)
            case WireRefused(wire, code, reason):
                self._write("wire_refused", wire=wire, code=code.value, reason=reason)
            case BrokerFailed(error):
                self._write("broker_failed", error=repr(error))
                if self.client is not None:
                    self.client.fail(f"the broker failed: {error!r}")
            case _:
                pass

    def _on_agent(self, event: AgentEvent) -> None:
        client = self.client
        match event:
            case AgentStarted(name, epoch, pid):
                self._write("agent_started", agent=name, epoch=epoch, pid=pid)
                self._progress(ProgressEvent(name, "start", 0.0))
            case AgentLoading(name, _, stage, fraction):
                self._progress(ProgressEvent(name, stage, fraction))
            case AgentReady(name, epoch, pid, model):
                self._write("agent_ready", agent=name, epoch=epoch, pid=pid)
                again = self._stats.restarts[name]
                self.agents[name] = AgentInfo(
                    pid, model.name, model.device, model.fingerprint, epoch, again, model.width
                )
                self._progress(ProgressEvent(name, "ready", 1.0))
                if client is not None:
                    client.agent_ready(name)
            case AgentDied(name, epoch, pid, reason, crashed, restart_in):
                self._write("agent_died", agent=name, epoch=epoch, pid=pid, reason=reason)
                self._stats.restarts[name] += restart_in is not None
                if client is not None:
                    client.agent_died(name, reason, crashed=crashed)
                if restart_in is not None:
                    self._progress(ProgressEvent(name, "lost", 0.0, reason))
            case AgentDown(name, reason, _):
                self._write("agent_down", agent=name, reason=reason)
                if client is not None:
                    client.agent_down(name, reason)
                self._progress(ProgressEvent(name, "down", 0.0, reason))

    def _keep_dead_letter(self, request: Request, task: TaskSpec, agent: str, reason: str) -> None:
        if self._run_folder is not None:
            DeadLetters(self._run_folder).add(request, task, agent, reason)

    def _write(self, event: str, **fields: object) -> None:
        if self._journal is not None:
            self._journal.write(event, **fields)
