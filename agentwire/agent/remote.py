"""An agent that runs on another machine: how the run waits for it, and how it joins.

Nobody starts or kills it from here. Where its connection breaks it comes back by itself, with its
model still loaded; the run sends again what was in flight. It may stay away for as long as loading
a model may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from agentwire.agent.failure import ExitCode, parse
from agentwire.agent.lifecycle import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLimits,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.spec import AgentSpec, BusAddress
from agentwire.bus.access import PeerKeys
from agentwire.bus.events import PeerBusy, PeerGone, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError, BusClosed, InputError
from agentwire.wire.session import UNKNOWN_RUN

log = logging.getLogger(__name__)
PAUSE_S: Final = 0.2
"""Before an agent joins again; doubles with each attempt that brings nothing, up to:"""
LONGEST_PAUSE_S: Final = 5.0


class Inviter(Protocol):
    """What a remote keeper needs of the broker."""

    def invite(self, name: str) -> None: ...
    def forget(self, name: str, epoch: int) -> None: ...


class RemoteKeeper:
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


def new_epoch() -> int:
    """Higher than every one before it, also of processes that are gone: milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def join(
    spec: AgentSpec, endpoint: str, keys: PeerKeys, *, on_news: Callable[[str], None]
) -> ExitCode:
    """Is an agent of the bus at ``endpoint``, again and again, until told to leave (SIGTERM).

    Args:
        spec: what it runs.
        endpoint: ``tcp://host:port`` of the bus.
        keys: its own pair, and the public key of the bus.
        on_news: told in words what happens.

    Raises:
        InputError: the model cannot be loaded, or the bus turns this agent away.
    """
    from agentwire.agent.service import Inbox, Service, connect, load
    from agentwire.bus.zmq import ZmqTransport

    loaded = load(spec, lambda stage, fraction: log.info("%s %.0f %%", stage, 100 * fraction))
    on_news(f"{spec.name} is loaded; joining {endpoint}")
    pause, told = PAUSE_S, threading.Event()
    while True:
        address = BusAddress(endpoint=endpoint, run=UNKNOWN_RUN.hex(), epoch=new_epoch(), token="")
        inbox = Inbox()
        peer = connect(spec.name, address, inbox, ZmqTransport(keys=keys))
        started = time.monotonic()
        service = Service(spec, peer, inbox, told=told)
        try:
            code, reason = service.run(loaded), service.lost
        except BusClosed as error:
            code, reason = ExitCode.BUS_LOST, error.message
        finally:
            peer.close("the agent ends", timeout=1.0)
        if code != ExitCode.BUS_LOST:
            on_news(f"{spec.name} leaves")
            return code
        if "refused (" in reason:
            raise InputError(
                f"The bus turns {spec.name} away: {reason}.",
                hint="Look at `agentwire keys list` there, and at the run's --remote.",
            )
        on_news(f"the bus is lost ({reason}); joining again")
        if told.wait(pause):
            on_news(f"{spec.name} leaves")
            return ExitCode.DONE
        lasted = time.monotonic() - started > LONGEST_PAUSE_S
        pause = PAUSE_S if lasted else min(LONGEST_PAUSE_S, 2 * pause)
