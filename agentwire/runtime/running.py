"""Starting and ending what a scenario names: its bus, its agents, the client that calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.placement import Cluster, Remote
from agentwire.errors import AgentwireError
from agentwire.runtime.client import Client
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.host import Host
from agentwire.runtime.ledger import Admission
from agentwire.runtime.pending import EventLog
from agentwire.runtime.reply import AgentInfo, ProgressEvent
from agentwire.scenario.fetch import fetch
from agentwire.scenario.resolve import Resolved
from agentwire.spec.launchers import LAUNCHERS
from agentwire.wire.session import Timing


class Running:
    """A scenario's agents: an async context manager, or ``start`` and ``aclose`` it.

    Both in the same event loop (asyncio), though not necessarily in the same task.

    Args:
        what: a resolved scenario, or a wiring built by hand.
        run_folder: where the journal and the agents' logs go; default: nowhere that stays.
        journal: told what happens; default: ``journal.jsonl`` in ``run_folder``, if there is one.
        progress: called in the event loop with news of agents while they start.
        limits: how long agents may take and how often they may die.
        timing: heartbeats of the bus.
        admission: what may be outstanding at once; more is refused as overloaded.
        remote: agents that run on other machines (``agentwire agent``), and where they join.
        record: write down what the bus takes in, for ``agentwire replay``: costs the broker about
            as much again for each message.
    """

    def __init__(
        self,
        what: Resolved | Deployment,
        *,
        run_folder: Path | None = None,
        journal: EventLog | None = None,
        progress: Callable[[ProgressEvent], None] | None = None,
        limits: AgentLimits | None = None,
        timing: Timing | None = None,
        admission: Admission | None = None,
        remote: Remote | None = None,
        record: bool = False,
    ) -> None:
        self._resolved = None if isinstance(what, Deployment) else what
        self._deployment = what if isinstance(what, Deployment) else Deployment.of(what)
        self._run_folder = run_folder
        self._journal = journal
        self._progress = progress or (lambda event: None)
        self._limits = limits
        self._timing = timing
        self._admission = admission
        self._remote = remote
        self._record = record
        self._cluster: Cluster | None = None
        self._host: Host | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Starts bus and agents; returns when every agent has loaded its model.

        Raises:
            InputError: an agent cannot start for a reason that the user can mend.
            AgentwireError: an agent does not start; or this runtime was started before.
        """
        if self._host is not None:
            raise AgentwireError("This runtime was started before.", hint="Open a new one.")
        if self._resolved is not None:
            self._deployment = await self._fetch(self._resolved)
        await self._launch()
        self._host = Host(
            self._deployment,
            run_folder=self._run_folder,
            journal=self._journal,
            progress=self._progress,
            limits=self._limits,
            timing=self._timing,
            admission=self._admission,
            remote=self._remote,
            record=self._record,
        )
        try:
            await self._host.start()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self, *, drain_s: float = 0.0) -> None:
        """Ends outstanding requests with CLOSING, then agents and bus. Safe to call twice.

        Args:
            drain_s: how long outstanding requests may still take, in seconds; meanwhile no new
                one is admitted (``BusClosed``).
        """
        if self._host is not None:
            await self._host.aclose(drain_s)
        if self._cluster is not None:
            await asyncio.to_thread(self._cluster.close)
            self._cluster = None

    async def _launch(self) -> None:
        """Lets the scenario's launcher place the agents, unless the caller has placed them."""
        scenario = self._resolved.scenario if self._resolved is not None else None
        if scenario is None or self._remote is not None:
            return
        launcher = LAUNCHERS.get(scenario.launcher)
        cluster: Cluster = await asyncio.to_thread(launcher, scenario.address)
        self._cluster, self._remote = cluster, cluster.place(self._deployment.processes)

    async def _fetch(self, resolved: Resolved) -> Deployment:
        loop = asyncio.get_running_loop()

        def report(what: str, stage: str, fraction: float) -> None:
            loop.call_soon_threadsafe(self._progress, ProgressEvent(what, stage, fraction))

        remote = self._remote
        elsewhere = remote.agents if remote is not None and remote.launcher is None else ()
        return Deployment.of(
            await asyncio.to_thread(fetch, resolved, progress=report, elsewhere=elsewhere)
        )

    # -- what runs --------------------------------------------------------------------------

    @property
    def agents(self) -> Mapping[str, AgentInfo]:
        """The latest incarnation of each agent that was ready once: its replicas one by one."""
        return {} if self._host is None else dict(self._host.agents)

    def status(self) -> Mapping[str, Any]:
        """What there is to see now: agents, outcomes, fallbacks, restarts, stages, credits."""
        return {} if self._host is None else self._host.status()

    @property
    def remote_endpoint(self) -> str:
        """Where agents of other machines join; "" if none do, or nothing runs."""
        return "" if self._host is None else self._host.remote_endpoint

    def metrics(self) -> Mapping[str, int]:
        """Counters and gauges of the bus (``Broker.metrics``)."""
        return {} if self._host is None else self._host.metrics()

    @property
    def _client(self) -> Client:
        """
        Raises:
            AgentwireError: nothing runs yet.
        """
        client = None if self._host is None else self._host.client
        if client is None:
            raise AgentwireError(
                "This runtime is not started.", hint="Use it in `async with`, or start() it."
            )
        return client
