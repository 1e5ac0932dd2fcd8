"""An agent on another machine, as the run sees it.

A launcher starts it, restarts it when it hangs, and reports when it has ended for good. Without a
launcher the user starts it, and it reconnects by itself after a broken connection. It may be away
for as long as loading may take; meanwhile the run resends what was in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLoading,
    AgentReady,
    AgentStarted,
    PeerEvent,
)
from agentwire.agent.launching.failure import decode_error
from agentwire.agent.launching.limits import AgentLimits, RestartBudget
from agentwire.agent.launching.placement import BrokerControl, Launcher
from agentwire.bus.events import PeerBusy, PeerLeft, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError
from agentwire.spec.agent import AgentSpec
from agentwire.telemetry.faults import describe

log = logging.getLogger(__name__)


class RemoteAgent:
    """Follows one agent. Lives in the event loop's thread.

    Attributes:
        ready: set when the agent is ready for the first time.
        error: why it is gone for good.
    """

    def __init__(
        self,
        spec: AgentSpec,
        broker: BrokerControl,
        launcher: Launcher | None,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self._spec = spec
        self._broker = broker
        self._launcher = launcher
        self._on_event = on_event
        self._limits = limits
        self._epoch = -1  # of the latest ready incarnation
        self._connected = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._stopping = asyncio.Event()
        self._budget = RestartBudget(limits.restarts)
        self._restarting: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[Exception]  # of the launcher; a new one for each attempt
        self.ready = asyncio.Event()
        self.error: AgentwireError | None = None

    def handle(self, event: PeerEvent) -> None:
        name = self._spec.name
        match event:
            case PeerReady(epoch=epoch, model=model):
                self._epoch = epoch
                self._disconnected.clear()
                self._connected.set()
                self.ready.set()
                self._on_event(AgentReady(name, epoch, 0, model))
            case PeerProgress(epoch=epoch, stage=stage, fraction=fraction):
                self._on_event(AgentLoading(name, epoch, stage, fraction))
            case PeerBusy(epoch=epoch, busy_ms=busy_ms):
                if epoch == self._epoch and busy_ms > self._limits.progress_s * 1000:
                    self._handle_hang(epoch)
            case PeerLeft(epoch=epoch, reason=reason):
                self._died(AgentDied(name, epoch, 0, reason, False, 0.0))
                self.error = decode_error(reason) or self.error
            case PeerLost(epoch=epoch, reason=reason, silent=silent):
                # Within a cluster a broken connection means a dead process.
                crashed = silent or self._launcher is not None
                self._died(AgentDied(name, epoch, 0, reason, crashed, 0.0))

    def _handle_hang(self, epoch: int) -> None:
        self._broker.disconnect(self._spec.name, epoch)  # refuses its next message
        if self._launcher is not None:
            self._restarting = asyncio.create_task(self._restart(self._launcher))

    async def _restart(self, launcher: Launcher) -> None:
        try:
            await asyncio.to_thread(launcher.restart, self._spec.name)
        except Exception as error:
            if not self._failure.done():
                self._failure.set_result(error)

    def _died(self, died: AgentDied) -> None:
        if died.epoch != self._epoch or not self._connected.is_set():
            return
        self._connected.clear()
        self._disconnected.set()
        if not self._stopping.is_set():  # leaving with the run is not a death
            self._on_event(died)

    def begin_stop(self) -> None:
        self._stopping.set()

    def kill(self) -> None:
        """Does nothing: the process is not ours. It exits at the broker's Goodbye."""

    async def run(self) -> None:
        """Returns when the run stops or the agent is gone for good. If the launcher fails, the
        agent is launched again within its restart budget."""
        name = self._spec.name
        while not self._stopping.is_set():
            self._failure = asyncio.get_running_loop().create_future()
            try:
                self._broker.expect_remote(name)
                if self._launcher is None:
                    self._on_event(AgentStarted(name, 0, 0))
                    await self._follow(asyncio.get_running_loop().create_future())
                else:
                    await self._launch(self._launcher)
                return
            except Exception as error:
                log.warning("the launcher of agent %s failed", name, exc_info=error)
                reason = f"its launcher failed: {describe(error)}"
            restart_in = self._budget.take(time.monotonic())
            if restart_in is None:
                self._gone(reason)
                return
            self._connected.clear()
            self._on_event(AgentDied(name, self._epoch, 0, reason, False, restart_in))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), restart_in)

    async def _launch(self, launcher: Launcher) -> None:
        name, endpoint = self._spec.name, self._broker.remote_endpoint
        restarts = self._limits.restarts.restarts
        try:
            await asyncio.to_thread(launcher.launch, self._spec, endpoint, restarts)
        except AgentwireError as error:
            self._down(error.message, error)
            return
        self._on_event(AgentStarted(name, 0, 0))
        # Not one of asyncio's few threads: this one is blocked for as long as the agent lives.
        waiter = ThreadPoolExecutor(1, thread_name_prefix=f"waits for {name}")
        ended = asyncio.get_running_loop().run_in_executor(waiter, launcher.wait, name)
        ended.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieves it
        try:
            await self._follow(ended)
        finally:
            try:
                await asyncio.to_thread(launcher.stop, name)
                await asyncio.wait([ended], timeout=self._limits.stop_s)
            except Exception as error:
                log.warning("agent %s could not be stopped", name, exc_info=error)
            waiter.shutdown(wait=False)

    async def _follow(self, ended: asyncio.Future[str]) -> None:
        """Waits for each connection and its end, until the launcher reports that it ``ended``."""
        while not self._stopping.is_set():
            came = await self._wait(self._connected, self._limits.load_s, ended)
            if ended.done():
                self._gone(ended.result())
                return
            if not came and not self._stopping.is_set():
                reason = f"it did not connect within {self._limits.load_s:.0f} s"
                if self._launcher is not None:
                    with contextlib.suppress(Exception):  # it only explains
                        pending = await asyncio.to_thread(
                            self._launcher.pending_reason, self._spec.name
                        )
                        reason += f" ({pending})" if pending else ""
                self._gone(reason)
                return
            await self._wait(self._disconnected, None, ended)

    async def _wait(
        self, event: asyncio.Event, seconds: float | None, ended: asyncio.Future[str]
    ) -> bool:
        """Waits for an event, or until stopping or ended; returns whether the event came."""
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(e.wait()) for e in (event, self._stopping)
        ]
        all_waits = [*waits, ended, self._failure]
        await asyncio.wait(all_waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        came = waits[0].done()
        for wait in waits:
            wait.cancel()
        if self._failure.done():
            raise self._failure.result()
        return came

    def _gone(self, reason: str) -> None:
        name = self._spec.name
        error = self.error or decode_error(reason)
        if error is not None:
            self._down(str(error), error)
            return
        hint = "Read the launcher's logs (Ray: `ray logs actor`, `ray status`)."
        if self._launcher is None:
            hint = f"Start it there: agentwire agent <scenario> {name} --connect tcp://…"
        self._down(reason, AgentwireError(f"The agent {name} is gone: {reason}.", hint=hint))

    def _down(self, reason: str, error: AgentwireError) -> None:
        self.error = error
        self._on_event(AgentDown(self._spec.name, reason, error))
