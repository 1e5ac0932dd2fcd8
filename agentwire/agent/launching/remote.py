"""Agents on other machines, as the run sees them.

An agent that the user starts (``RemoteAgent``) reconnects by itself after a broken connection, its
model still loaded. An agent that a launcher starts (``LaunchedAgent``) is also restarted when it
hangs, and the launcher reports when it has ended for good. Either may be away for as long as a
model may take to load; meanwhile the run resends what was in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.failure import decode_error
from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.placement import BrokerControl, Launcher
from agentwire.bus.events import PeerBusy, PeerLeft, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError
from agentwire.spec.agent import AgentSpec


class RemoteConnection:
    """Follows the connection of one agent. Lives in the event loop's thread.

    Attributes:
        ready: set when the agent is ready for the first time.
        connected, disconnected: whether a ready incarnation is connected now.
        stopping: set when the run ends.
        error: why the agent cannot start, or is gone for good.
    """

    def __init__(
        self,
        name: str,
        broker: BrokerControl,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self.name = name
        self.limits = limits
        self._broker = broker
        self._on_event = on_event
        self._epoch = -1  # of the latest ready incarnation
        self.ready = asyncio.Event()
        self.connected = asyncio.Event()
        self.disconnected = asyncio.Event()
        self.stopping = asyncio.Event()
        self.error: AgentwireError | None = None

    def handle(self, event: PeerReady | PeerLost | PeerLeft | PeerBusy | PeerProgress) -> None:
        match event:
            case PeerReady(epoch=epoch, model=model):
                self._epoch = epoch
                self.disconnected.clear()
                self.connected.set()
                self.ready.set()
                self._on_event(AgentReady(self.name, epoch, 0, model))
            case PeerProgress(epoch=epoch, stage=stage, fraction=fraction):
                self._on_event(AgentLoading(self.name, epoch, stage, fraction))
            case PeerBusy(epoch=epoch):
                if self.is_hung(event):
                    self._broker.disconnect(self.name, epoch)  # refuses its next message
            case PeerLeft(epoch=epoch, reason=reason):
                self._died(AgentDied(self.name, epoch, 0, reason, False, 0.0))
                self.error = decode_error(reason) or self.error
            case PeerLost(epoch=epoch, reason=reason, silent=silent):
                self._died(AgentDied(self.name, epoch, 0, reason, silent, 0.0))

    def is_hung(self, event: PeerBusy) -> bool:
        return event.epoch == self._epoch and event.busy_ms > self.limits.progress_s * 1000

    def _died(self, died: AgentDied) -> None:
        if died.epoch != self._epoch or not self.connected.is_set():
            return
        self.connected.clear()
        self.disconnected.set()
        if not self.stopping.is_set():  # leaving with the run is not a death
            self._on_event(died)

    async def wait(
        self,
        event: asyncio.Event,
        seconds: float | None = None,
        ended: asyncio.Future[str] | None = None,
    ) -> bool:
        """Waits for an event, or until the run stops or the agent has ``ended``.

        Returns:
            Whether the event came.
        """
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(e.wait()) for e in (event, self.stopping)
        ]
        others = [] if ended is None else [ended]
        await asyncio.wait([*waits, *others], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        came = waits[0].done()
        for wait in waits:
            wait.cancel()
        return came

    def down(self, reason: str, error: AgentwireError) -> None:
        """Reports that the agent is gone for good."""
        self.error = error
        self._on_event(AgentDown(self.name, reason, error))


class RemoteAgent:
    """An agent that the user starts. Lives in the event loop's thread."""

    def __init__(
        self,
        name: str,
        broker: BrokerControl,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self._connection = RemoteConnection(name, broker, on_event, limits)
        self._broker = broker
        self._on_event = on_event
        self.ready = self._connection.ready
        self.handle = self._connection.handle

    @property
    def error(self) -> AgentwireError | None:
        return self._connection.error

    def begin_stop(self) -> None:
        self._connection.stopping.set()

    def kill(self) -> None:
        """Does nothing: the process is not ours. It stops at the broker's Goodbye."""

    async def run(self) -> None:
        """Returns when the run stops or the agent was away for too long."""
        connection = self._connection
        name, load_s = connection.name, connection.limits.load_s
        self._broker.expect_remote(name)
        self._on_event(AgentStarted(name, 0, 0))
        while not connection.stopping.is_set():
            if await connection.wait(connection.connected, load_s):
                await connection.wait(connection.disconnected)
            elif not connection.stopping.is_set():
                reason = f"it did not connect within {load_s:.0f} s"
                error = connection.error or AgentwireError(
                    f"The remote agent {name} is not connected: {reason}.",
                    hint=f"Start it there: agentwire agent <scenario> {name} --connect tcp://…",
                )
                connection.down(reason, error)
                return


class LaunchedAgent:
    """An agent that a launcher starts. Lives in the event loop's thread.

    Args:
        endpoint: the broker's address for other machines, known once the broker runs.
    """

    def __init__(
        self,
        spec: AgentSpec,
        broker: BrokerControl,
        endpoint: Callable[[], str],
        launcher: Launcher,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self._connection = RemoteConnection(spec.name, broker, on_event, limits)
        self._spec = spec
        self._broker = broker
        self._endpoint = endpoint
        self._launcher = launcher
        self._on_event = on_event
        self._restarting: asyncio.Future[None] | None = None
        self.ready = self._connection.ready

    @property
    def error(self) -> AgentwireError | None:
        return self._connection.error

    def begin_stop(self) -> None:
        self._connection.stopping.set()

    def kill(self) -> None:
        """Does nothing: the launcher stops the process."""

    def handle(self, event: PeerReady | PeerLost | PeerLeft | PeerBusy | PeerProgress) -> None:
        if isinstance(event, PeerLost):
            # Within a cluster a broken connection means a dead process: a request may be the cause.
            event = replace(event, silent=True)
        self._connection.handle(event)
        if isinstance(event, PeerBusy) and self._connection.is_hung(event):
            restart = asyncio.to_thread(self._launcher.restart, self._spec.name)
            self._restarting = asyncio.ensure_future(restart)

    async def run(self) -> None:
        """Launches the agent. Returns when the run stops or the agent is gone for good."""
        name, connection = self._spec.name, self._connection
        load_s, restarts = connection.limits.load_s, connection.limits.restarts.restarts
        self._broker.expect_remote(name)
        try:
            await asyncio.to_thread(self._launcher.launch, self._spec, self._endpoint(), restarts)
        except AgentwireError as error:
            connection.down(error.message, error)
            return
        self._on_event(AgentStarted(name, 0, 0))
        # Not one of asyncio's few threads: this one is blocked for as long as the agent lives.
        waiter = ThreadPoolExecutor(1, thread_name_prefix=f"waits for {name}")
        loop = asyncio.get_running_loop()
        ended = asyncio.ensure_future(loop.run_in_executor(waiter, self._launcher.wait, name))
        try:
            while not connection.stopping.is_set():
                came = await connection.wait(connection.connected, load_s, ended)
                if ended.done():
                    self._down(ended.result())
                    return
                if not came and not connection.stopping.is_set():
                    pending = await asyncio.to_thread(self._launcher.pending_reason, name)
                    late = f"it did not connect within {load_s:.0f} s"
                    self._down(f"{late} ({pending})" if pending else late)
                    return
                await connection.wait(connection.disconnected, None, ended)
        finally:
            await asyncio.to_thread(self._launcher.stop, name)
            with contextlib.suppress(Exception):
                await ended
            waiter.shutdown(wait=False)

    def _down(self, reason: str) -> None:
        error = self.error or decode_error(reason)
        if error is not None:
            reason = str(error)
        self._connection.down(
            reason,
            error
            or AgentwireError(
                f"The agent {self._spec.name} is gone: {reason}.",
                hint="Read the launcher's logs (Ray: `ray logs actor`, `ray status`).",
            ),
        )
