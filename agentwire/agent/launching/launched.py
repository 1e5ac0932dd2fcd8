"""An agent that a launcher places on some machine, and starts again there or on another one.

It joins the bus by key, as an agent that somebody started by hand (``remote``). What differs:
the launcher starts it, ends it when it hangs, and says when it is gone for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from agentwire.agent.launching.events import AgentDown, AgentEvent, AgentLimits, AgentStarted
from agentwire.agent.launching.failure import parse
from agentwire.agent.launching.placement import Launcher
from agentwire.agent.launching.remote import Inviter, RemoteAgent
from agentwire.bus.events import PeerBusy, PeerGone, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError
from agentwire.spec.agent import AgentSpec


class LaunchedAgent(RemoteAgent):
    """Keeps one launched agent. Lives in the event loop's thread."""

    def __init__(
        self,
        spec: AgentSpec,
        broker: Inviter,
        endpoint: Callable[[], str],
        launcher: Launcher,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        super().__init__(spec.name, broker, on_event, limits)
        self._spec = spec
        self._endpoint = endpoint
        self._launcher = launcher

    def handle(self, event: PeerReady | PeerLost | PeerGone | PeerBusy | PeerProgress) -> None:
        if isinstance(event, PeerLost):
            # Within a cluster a lost connection is a lost process: what it worked on may be why.
            event = replace(event, silent=True)
        hangs = (
            isinstance(event, PeerBusy)
            and event.epoch == self._epoch
            and event.busy_ms > self._limits.progress_s * 1000
        )
        super().handle(event)
        if hangs:
            self._doing = asyncio.ensure_future(
                asyncio.to_thread(self._launcher.restart, self._spec.name)
            )

    async def keep(self) -> None:
        """Has it started, and waits until it is stopped or gone for good."""
        name = self._spec.name
        self._broker.invite(name)
        try:
            await asyncio.to_thread(
                self._launcher.launch,
                self._spec,
                self._endpoint(),
                self._limits.restarts.restarts,
            )
        except AgentwireError as error:
            self._down(error.message, error)
            return
        self._on_event(AgentStarted(name, 0, 0))
        # A thread of its own: asyncio's are few, and this one is taken while the agent lives.
        waiter = ThreadPoolExecutor(1, thread_name_prefix=f"waits for {name}")
        loop = asyncio.get_running_loop()
        gone = asyncio.ensure_future(loop.run_in_executor(waiter, self._launcher.wait, name))
        try:
            while not self._stopping.is_set():
                here = await self._first(gone, self._here.wait(), self._limits.load_s)
                if gone.done():
                    self._is_gone(gone.result())
                    return
                if not here and not self._stopping.is_set():
                    waits = await asyncio.to_thread(self._launcher.where, name)
                    late = f"it did not come within {self._limits.load_s:.0f} s"
                    self._is_gone(f"{late} ({waits})" if waits else late)
                    return
                await self._first(gone, self._away.wait(), None)
        finally:
            await asyncio.to_thread(self._launcher.stop, name)
            with contextlib.suppress(Exception):
                await gone
            waiter.shutdown(wait=False)

    async def _first(
        self, gone: asyncio.Future[str], event: Coroutine[Any, Any, bool], seconds: float | None
    ) -> bool:
        """Waits for an event, the agent's end, or being stopped; whether it was the event."""
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(event),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        await asyncio.wait([*waits, gone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return waits[0].done() and not waits[0].cancelled()

    def _is_gone(self, reason: str) -> None:
        error = self.error or parse(reason)
        self._down(
            str(error) if error else reason,
            error
            or AgentwireError(
                f"The agent {self._spec.name} is gone: {reason}.",
                hint="The launcher's own logs say more (Ray: `ray logs actor`, `ray status`).",
            ),
        )

    def _down(self, reason: str, error: AgentwireError) -> None:
        self.error = error
        self._on_event(AgentDown(self._spec.name, reason, error))
