"""One agent's life, incarnation after incarnation: spawn, watch, end, restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLimits,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.failure import ExitCode, parse
from agentwire.agent.launching.restarts import RestartBudget
from agentwire.bus.events import PeerBusy, PeerGone, PeerLost, PeerProgress, PeerReady
from agentwire.errors import AgentwireError, InputError
from agentwire.spec.agent import AgentBootstrap, AgentSpec, BusAddress
from agentwire.telemetry.logs import message_of

GOODBYE_WAIT_S: Final = 1.0
CUT_OFF_S: Final = 0.5
"""A process whose connection broke and that still runs after so long did not die of a request."""
LOG_TAIL_BYTES: Final = 4096


class Gatekeeper(Protocol):
    """What the supervisor needs of the broker."""

    @property
    def endpoint(self) -> str: ...
    @property
    def remote_endpoint(self) -> str: ...
    def expect(self, name: str, epoch: int) -> None: ...
    def invite(self, name: str) -> None: ...
    def forget(self, name: str, epoch: int) -> None: ...


@dataclass(eq=False)
class _Child:
    """One incarnation. ``fate`` is set with the first thing that went wrong."""

    epoch: int
    process: subprocess.Popen[bytes]
    fate: asyncio.Future[str]
    exited: asyncio.Event
    goodbye: asyncio.Future[str]
    ready: bool = False
    cut_off: bool = False  # its connection broke, though it was not silent

    def doom(self, reason: str) -> None:
        if not self.fate.done():
            self.fate.set_result(reason)


class AgentProcess:
    """Keeps one agent alive. Lives in the event loop's thread.

    Attributes:
        up: set when the agent is ready for the first time.
        error: why it is gone for good.
    """

    def __init__(
        self,
        spec: AgentSpec,
        broker: Gatekeeper,
        run: bytes,
        token: str,
        log: Path,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self._spec = spec
        self._broker = broker
        self._run = run
        self._token = token
        self._log = log
        self._on_event = on_event
        self._limits = limits
        self._budget = RestartBudget(limits.restarts)
        self._child: _Child | None = None
        self._pid = 0  # of the latest incarnation
        self._crashed = False
        self._stopping = asyncio.Event()
        self.up = asyncio.Event()
        self.error: AgentwireError | None = None

    # -- what others tell -------------------------------------------------------------------

    def handle(self, event: PeerReady | PeerLost | PeerGone | PeerBusy | PeerProgress) -> None:
        child = self._child
        if child is None or child.epoch != event.epoch:
            return  # of an incarnation that is gone
        match event:
            case PeerReady(model=model):
                child.ready = True
                self.up.set()
                self._tell(AgentReady(self._spec.name, child.epoch, child.process.pid, model))
            case PeerProgress(stage=stage, fraction=fraction):
                self._tell(AgentLoading(self._spec.name, child.epoch, stage, fraction))
            case PeerBusy(busy_ms=busy_ms) if busy_ms > self._limits.progress_s * 1000:
                child.doom(f"it has computed one batch for {busy_ms / 1000:.0f} s")
            case PeerGone(reason=reason):
                if not child.goodbye.done():
                    child.goodbye.set_result(reason)
            case PeerLost(reason=reason, silent=silent):
                child.cut_off = not silent
                child.doom(f"the bus lost it: {reason}")
            case _:
                pass

    def begin_stop(self) -> None:
        self._stopping.set()
        if self._child is not None:
            self._child.doom("it was stopped")

    def kill(self) -> None:
        if self._child is not None:
            _signal(self._child.process, signal.SIGKILL)

    # -- one agent's life -------------------------------------------------------------------

    async def keep(self) -> None:
        """Runs incarnations, one after the other, until stopped or out of budget."""
        epoch = 0
        while not self._stopping.is_set():
            epoch += 1
            reason, error = await self._live(epoch)
            if self._stopping.is_set():
                return
            delay = None if error is not None else self._budget.died(time.monotonic())
            died = AgentDied(self._spec.name, epoch, self._pid, reason, self._crashed, delay)
            self._tell(died)
            if delay is None:
                self.error = error or self._given_up(reason)
                self._tell(AgentDown(self._spec.name, reason, self.error))
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _live(self, epoch: int) -> tuple[str, InputError | None]:
        """One incarnation, from spawn to the end of its process: why it ended."""
        self._broker.expect(self._spec.name, epoch)
        child = self._child = self._spawn(epoch)
        self._pid = child.process.pid
        self._tell(AgentStarted(self._spec.name, epoch, child.process.pid))
        error: InputError | None = None
        try:
            reason = await self._fate(child)
            error = await self._parting_words(child)
        finally:
            blameless = await self._was_cut_off(child)
            await self._end(child)
            self._child = None
            self._crashed = not blameless and child.process.returncode != ExitCode.DONE
            self._broker.forget(self._spec.name, epoch)
        return (str(error) if error else reason), error

    async def _fate(self, child: _Child) -> str:
        """Waits until the process ends or has to."""
        loading = asyncio.get_running_loop().call_later(
            self._limits.load_s, self._check_loaded, child
        )
        try:
            return await child.fate
        finally:
            loading.cancel()

    def _check_loaded(self, child: _Child) -> None:
        if not child.ready:
            child.doom(f"it did not load its model within {self._limits.load_s:.0f} s")

    async def _parting_words(self, child: _Child) -> InputError | None:
        """The error that an agent which could not start told the broker, if it did."""
        if child.process.returncode != ExitCode.INPUT:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_WAIT_S):
                return parse(await asyncio.shield(child.goodbye))
        return InputError(
            f"The agent {self._spec.name} cannot start: {self._last_words()}.",
            hint=f"Its log is {self._log}.",
        )

    async def _was_cut_off(self, child: _Child) -> bool:
        """Whether a broken connection ended it, and no request is to blame.

        A process that dies also breaks its connection, and the broker may see that first. So it
        gets a moment to be found dead.
        """
        if child.cut_off and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CUT_OFF_S):
                    await child.exited.wait()
        if not child.exited.is_set():
            return child.cut_off
        return child.process.returncode == ExitCode.BUS_LOST

    async def _end(self, child: _Child) -> None:
        """Ends the process if it has not ended: with time to finish when the run stops."""
        if not child.exited.is_set() and self._stopping.is_set():
            _signal(child.process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.stop_s):
                    await child.exited.wait()
        if not child.exited.is_set():
            _signal(child.process, signal.SIGKILL)
            await child.exited.wait()
        if child.process.stdin is not None:
            with contextlib.suppress(OSError):
                child.process.stdin.close()

    def _spawn(self, epoch: int) -> _Child:
        address = BusAddress(
            endpoint=self._broker.endpoint, run=self._run.hex(), epoch=epoch, token=self._token
        )
        counted = str(self._log.with_suffix(".json").absolute())
        bootstrap = AgentBootstrap(agent=self._spec, bus=address, telemetry=counted)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "agentwire.agent.process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        child = _Child(epoch, process, loop.create_future(), asyncio.Event(), loop.create_future())

        def watch() -> None:
            process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(exited)

        def exited() -> None:
            child.exited.set()
            child.doom(_death(process.returncode))

        threading.Thread(target=watch, name=f"wait {self._spec.name}", daemon=True).start()
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # it died at once: its exit says so
                process.stdin.write(bootstrap.model_dump_json().encode() + b"\n")
                process.stdin.flush()
        return child

    def _tell(self, event: AgentEvent) -> None:
        self._on_event(event)

    def _given_up(self, reason: str) -> AgentwireError:
        policy = self._limits.restarts
        return AgentwireError(
            f"The agent {self._spec.name} died {policy.restarts + 1} times within "
            f"{policy.window_s:.0f} s and is not started again (last: {reason}; its log ends: "
            f"{self._last_words()}).",
            hint=f"Read {self._log}.",
        )

    def _last_words(self) -> str:
        """The last line of the agent's log."""
        try:
            tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            tail = ""
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return message_of(lines[-1])[:200] if lines else "the log is empty"


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signals the child's whole session: it may have children of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _death(code: int) -> str:
    """What an exit status means, in words."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the process was ended by {name}"
    words = {
        ExitCode.DONE: "the process left by itself",
        ExitCode.BUS_LOST: "the process lost the bus",
        ExitCode.ERROR: "the process ended by a bug",
        ExitCode.INPUT: "the process could not start",
    }
    return words.get(ExitCode(code), "") if code in set(ExitCode) else f"exit status {code}"
