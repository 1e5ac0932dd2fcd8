"""An agent that runs on another machine, as the run sees it.

Nobody starts or kills it from here. Where its connection breaks it comes back by itself, with its
model still loaded; the run sends again what was in flight. It may stay away for as long as loading
a model may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLimits,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.failure import parse
from agentwire.bus.events import PeerBusy, PeerGone, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError

log = logging.getLogger(__name__)


class Inviter(Protocol):
    """What a remote keeper needs of the broker."""

    def invite(self, name: str) -> None: ...
    def forget(self, name: str, epoch: int) -> None: ...


class RemoteAgent:
    """Waits for one agent of another machine. Lives in the event loop's thread.

    Attributes:
        up: set when the agent is ready for the first time.
        error: why it is gone for good.
    """

    def __init__(
        self,
        name: str,
        broker: Inviter,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self._name = name
        self._broker = broker
        self._on_event = on_event
        self._limits = limits
        self._epoch = -1  # of the incarnation that is here
        self._here = asyncio.Event()
        self._away = asyncio.Event()
        self._stopping = asyncio.Event()
        self.up = asyncio.Event()
        self.error: AgentwireError | None = None

    def handle(self, event: PeerReady | PeerLost | PeerGone | PeerBusy | PeerProgress) -> None:
        match event:
            case PeerReady(epoch=epoch, model=model):
                self._epoch = epoch
                self._away.clear()
                self._here.set()
                self.up.set()
                self._on_event(AgentReady(self._name, epoch, 0, model))
            case PeerProgress(epoch=epoch, stage=stage, fraction=fraction):
                self._on_event(AgentLoading(self._name, epoch, stage, fraction))
            case PeerBusy(epoch=epoch, busy_ms=busy_ms):
                if busy_ms > self._limits.progress_s * 1000 and epoch == self._epoch:
                    self._broker.forget(self._name, epoch)  # its next message is a stranger's
            case PeerGone(epoch=epoch, reason=reason):
                self._leave(epoch, reason, crashed=False)
                error = parse(reason)
                if error is not None:
                    self.error = error
            case PeerLost(epoch=epoch, reason=reason, silent=silent):
                self._leave(epoch, reason, crashed=silent)

    def _leave(self, epoch: int, reason: str, *, crashed: bool) -> None:
        if epoch == self._epoch and self._here.is_set():
            self._here.clear()
            self._away.set()
            if self._stopping.is_set():
                return  # it leaves with the run, however it does
            self._on_event(AgentDied(self._name, epoch, 0, reason, crashed, 0.0))

    def begin_stop(self) -> None:
        self._stopping.set()

    def kill(self) -> None:
        """Nothing: its process is not ours. The broker's Goodbye ends its work here."""

    async def keep(self) -> None:
        """Waits for it, as often as it leaves, until stopped or it stays away for too long."""
        self._broker.invite(self._name)
        self._on_event(AgentStarted(self._name, 0, 0))
        while not self._stopping.is_set():
            if not await self._either(self._here, self._limits.load_s):
                if not self._stopping.is_set():
                    self._give_up()
                return
            await self._either(self._away, None)

    async def _either(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Waits for an event or for the end, at most so long; whether the event came."""
        tasks = [asyncio.ensure_future(e.wait()) for e in (event, self._stopping)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return event.is_set()

    def _give_up(self) -> None:
        reason = f"it did not come within {self._limits.load_s:.0f} s"
        self.error = self.error or AgentwireError(
            f"The agent {self._name} of another machine is not here: {reason}.",
            hint=f"Start it there: agentwire agent <scenario> {self._name} --connect tcp://…",
        )
        self._on_event(AgentDown(self._name, reason, self.error))


# -- on the other machine -------------------------------------------------------------------
