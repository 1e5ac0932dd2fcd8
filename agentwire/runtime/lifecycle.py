"""Starts and stops a runtime's bus, agents and client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anyio import CancelScope

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.placement import Cluster, Remote
from agentwire.agent.supervisor import Supervisor
from agentwire.bus.broker import Broker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import BrokerEvent, BrokerFailed, WireAgreed, WireRefused
from agentwire.bus.recording import FILE_NAME, BusRecorder
from agentwire.bus.security import make_run_folder, new_token
from agentwire.errors import AgentwireError
from agentwire.runtime.client import Client
from agentwire.runtime.deadletters import DeadLetters
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission, Request
from agentwire.runtime.pending import EventLog
from agentwire.runtime.reply import AgentInfo, ProgressEvent
from agentwire.scenario.fetch import fetch
from agentwire.scenario.resolve import Resolved
from agentwire.spec.agent import BusAddress
from agentwire.spec.launchers import LAUNCHERS
from agentwire.spec.routes import agent_of
from agentwire.telemetry.journal import Journal
from agentwire.telemetry.metrics import RuntimeMetrics
from agentwire.telemetry.status import write_status
from agentwire.wire.messages import Hello, Message, Role, TaskSpec
from agentwire.wire.session import Timing

CLIENT = "client"
STATUS_INTERVAL_S = 1.0


@dataclass(eq=False)
class Lifecycle:
    """The running parts of one ``Runtime``, whose arguments it takes. Can be started once.

    Attributes:
        deployment: the agents and wires.
        agents: the latest incarnation of each agent that was ever ready, replica by replica.
        metrics: counters and latencies.
        client: None before the start.
    """

    target: Resolved | Deployment
    run_folder: Path | None
    journal: EventLog | None
    progress: Callable[[ProgressEvent], None]
    limits: AgentLimits | None
    timing: Timing | None
    admission: Admission | None
    remote: Remote | None
    record: bool

    def __post_init__(self) -> None:
        target = self.target
        self.deployment = target if isinstance(target, Deployment) else Deployment.of(target)
        self.agents: dict[str, AgentInfo] = {}
        self.metrics = RuntimeMetrics(self._state)
        # These are set by ``start``.
        self._cluster: Cluster | None = None
        self.client: Client | None = None
        self._broker: Broker | None = None
        self._supervisor: Supervisor | None = None
        self._recorder: BusRecorder | None = None
        self._own_journal: Journal | None = None
        self._status_task: asyncio.Task[None] | None = None

    # -- start and stop ---------------------------------------------------------------------

    async def start(self) -> None:
        """As ``Runtime.start``."""
        if self._broker is not None:
            raise AgentwireError("The runtime has been started before.", hint="Open a new runtime.")
        CancelScope()  # loads anyio's backend, for which there may be no descriptor at the end
        if isinstance(self.target, Resolved):
            await self._fetch(self.target)
            await self._place_agents(self.target)
        try:
            supervisor = self._start()
            await supervisor.ready()
        except BaseException:
            await self.aclose()
            raise

    async def _fetch(self, resolved: Resolved) -> None:
        """Downloads the models and data that are missing on this machine."""
        loop, remote = asyncio.get_running_loop(), self.remote

        def report(name: str, stage: str, fraction: float) -> None:
            loop.call_soon_threadsafe(self._report, ProgressEvent(name, stage, fraction))

        elsewhere = remote.agents if remote is not None and remote.launcher is None else ()
        fetched = await asyncio.to_thread(fetch, resolved, progress=report, elsewhere=elsewhere)
        self.deployment = Deployment.of(fetched)

    async def _place_agents(self, resolved: Resolved) -> None:
        """Lets the scenario's launcher place the agents, unless the caller has placed them."""
        if self.remote is None:
            launcher = LAUNCHERS.get(resolved.scenario.launcher)
            cluster: Cluster = await asyncio.to_thread(launcher, resolved.scenario.address)
            self._cluster, self.remote = cluster, cluster.place(self.deployment.processes)

    def _start(self) -> Supervisor:
        deployment, remote, run_folder = self.deployment, self.remote, self.run_folder
        self._loop = asyncio.get_running_loop()
        self._bus_folder = make_run_folder()
        folder = run_folder or self._bus_folder
        folder.mkdir(parents=True, exist_ok=True)
        if run_folder is not None and self.journal is None:
            self.journal = self._own_journal = Journal(run_folder / "journal.jsonl")
        run, token, epochs = os.urandom(16), new_token(), itertools.count(1)
        self._invitation = {"run": run.hex(), "token": token}
        if self.record and run_folder is not None:
            on_error = functools.partial(self.metrics.faults.record, "recording")
            self._recorder = BusRecorder(folder / FILE_NAME, token, on_error)
        broker = self._broker = Broker(
            run=run,
            folder=self._bus_folder,
            wires=deployment.ends,
            token=token,
            agents=deployment.processes,
            reserved={CLIENT, "broker", "bus", *map(agent_of, deployment.processes)},
            on_event=self._on_broker_event,
            timing=self.timing,
            remote=remote.access if remote is not None else None,
            recorder=self._recorder,
        )
        supervisor = self._supervisor = Supervisor(
            deployment.processes,
            broker,
            run=run,
            logs=folder / "logs",
            on_event=self._on_agent_event,
            limits=self.limits,
            remote=remote.agents if remote is not None else (),
            launcher=remote.launcher if remote is not None else None,
            faults=self.metrics.faults,
        )

        def connect(
            on_message: Callable[[Message, float], None], on_lost: Callable[[str], None]
        ) -> Endpoint:
            epoch = next(epochs)
            return Endpoint(
                BusAddress(endpoint=broker.endpoint, run=run.hex(), epoch=epoch, token=token),
                Hello(CLIENT, Role.CLIENT),
                on_message=on_message,
                on_lost=on_lost,
                transport=broker.in_process,
            )

        self._connect = connect
        broker.start()
        self.client = Client(
            connect,
            deployment.agents_by_wire,
            self.journal,
            admission=self.admission,
            fallback_wires=deployment.fallback_wires,
            routes=deployment.routes,
            on_dead_letter=self._store_dead_letter,
            metrics=self.metrics,
            token_bytes={
                name: 2 * card.identity().width for name, card in deployment.cards.items()
            },
            fallback_below=deployment.fallback_below,
        )
        self.client.start()
        if run_folder is not None:
            self._status_task = asyncio.create_task(self._keep_status(run_folder))
        supervisor.start()
        return supervisor

    async def aclose(self, drain_s: float = 0.0) -> None:
        """As ``Runtime.aclose``."""
        if self.client is not None and drain_s > 0:
            await self.client.drain(drain_s)
        if self._status_task is not None:
            self._status_task.cancel()
        if self._broker is not None and self._supervisor is not None:
            # Shielded: an interrupted run must not leave processes behind.
            with CancelScope(shield=True):
                await self._stop(self._broker, self._supervisor)
        if self._cluster is not None:
            await asyncio.to_thread(self._cluster.close)
            self._cluster = None

    async def _stop(self, broker: Broker, supervisor: Supervisor) -> None:
        try:
            if self.client is not None:
                await self.client.close("the runtime is closed")
            await supervisor.stop()
        finally:
            supervisor.kill()
            try:
                await asyncio.to_thread(broker.stop)
            finally:
                if self._status_task is not None and self.run_folder is not None:
                    self._write_status(self.run_folder, ended=True)
                    self._status_task = None
                if self._own_journal is not None:
                    self._own_journal.close()
                if self._recorder is not None:
                    self._recorder.close()
                shutil.rmtree(self._bus_folder, ignore_errors=True)

    # -- status -----------------------------------------------------------------------------

    @property
    def remote_endpoint(self) -> str:
        return "" if self._broker is None else self._broker.remote_endpoint

    def invitation(self) -> dict[str, str]:
        return dict(self._invitation, endpoint=self._broker.endpoint) if self._broker else {}

    def bus_metrics(self) -> dict[str, int]:
        return {} if self._broker is None else dict(self._broker.metrics())

    def status(self) -> dict[str, Any]:
        state = self._state()
        return {"pid": os.getpid(), **state, **self.metrics.to_json()} if state else {}

    def _state(self) -> dict[str, Any]:
        client = self.client
        if self._broker is None:
            return {}
        return {
            "agents": {name: asdict(info) for name, info in dict(self.agents).items()},
            "bus": self.bus_metrics(),
            "outstanding": 0 if client is None else client.outstanding,
            "credits": {} if client is None else client.credits,
        }

    async def _keep_status(self, folder: Path) -> None:
        while True:
            self._write_status(folder, ended=False)
            await asyncio.sleep(STATUS_INTERVAL_S)

    def _write_status(self, folder: Path, *, ended: bool) -> None:
        with self.metrics.faults.contain("status file"):
            write_status(folder, self.status() | {"time": time.time(), "ended": ended})

    # -- events -----------------------------------------------------------------------------

    def _on_broker_event(self, event: BrokerEvent) -> None:
        """Runs in the broker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._handle_broker_event, event)

    def _handle_broker_event(self, event: BrokerEvent) -> None:
        if self._supervisor is not None:
            self._supervisor.handle(event)
        match event:
            case WireAgreed(wire, bridge):
                self._log("wire_agreed", wire=wire, bridge=bridge.name)
            case WireRefused(wire, code, reason):
                self._log("wire_refused", wire=wire, code=code.value, reason=reason)
            case BrokerFailed(error):
                self._log("broker_failed", error=repr(error))
                reason = f"the broker failed: {error!r}"
                if self.client is not None:
                    self.client.fail(reason)
                if self._supervisor is not None:
                    self._supervisor.fail(reason)
            case _:
                pass

    def _on_agent_event(self, event: AgentEvent) -> None:
        client = self.client
        assert client is not None  # it is made before the agents are started
        match event:
            case AgentStarted(name, epoch, pid):
                self._log("agent_started", agent=name, epoch=epoch, pid=pid)
                self._report(ProgressEvent(name, "start", 0.0))
            case AgentLoading(name, _, stage, fraction):
                self._report(ProgressEvent(name, stage, fraction))
            case AgentReady(name, epoch, pid, model):
                self._log("agent_ready", agent=name, epoch=epoch, pid=pid)
                restarts = self.metrics.restarts[name]
                self.agents[name] = AgentInfo(
                    pid, model.name, model.device, model.fingerprint, epoch, restarts, model.width
                )
                self._report(ProgressEvent(name, "ready", 1.0))
                client.agent_ready(name)
            case AgentDied(name, epoch, pid, reason, crashed, restart_in):
                self._log("agent_died", agent=name, epoch=epoch, pid=pid, reason=reason)
                self.metrics.restarts[name] += restart_in is not None
                client.agent_died(name, reason, crashed=crashed)
                if restart_in is not None:
                    self._report(ProgressEvent(name, "lost", 0.0, reason))
            case AgentDown(name, reason, _):
                self._log("agent_down", agent=name, reason=reason)
                client.agent_down(name, reason)
                self._report(ProgressEvent(name, "down", 0.0, reason))

    def _report(self, event: ProgressEvent) -> None:
        with self.metrics.faults.contain("progress callback"):
            self.progress(event)

    def _store_dead_letter(self, request: Request, task: TaskSpec, agent: str, reason: str) -> None:
        if self.run_folder is not None:
            with self.metrics.faults.contain("dead letters"):
                DeadLetters(self.run_folder).add(request, task, agent, reason)

    def _log(self, event: str, **fields: object) -> None:
        if self.journal is not None:
            with self.metrics.faults.contain("journal"):
                self.journal.write(event, **fields)
