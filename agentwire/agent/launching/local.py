"""An agent as a child process: spawn, watch, stop, restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLoading,
    AgentReady,
    AgentStarted,
    PeerEvent,
)
from agentwire.agent.launching.failure import ExitCode, decode_error
from agentwire.agent.launching.limits import AgentLimits, RestartBudget
from agentwire.agent.launching.placement import BrokerControl
from agentwire.bus.events import PeerBusy, PeerLeft, PeerLost, PeerProgress, PeerReady
from agentwire.bus.security import new_token
from agentwire.errors import AgentwireError, InputError
from agentwire.spec.agent import AgentBootstrap, AgentSpec, BusAddress
from agentwire.telemetry.faults import describe
from agentwire.telemetry.logs import message_of

log = logging.getLogger(__name__)
GOODBYE_WAIT_S: Final = 1.0
EXIT_WAIT_S: Final = 0.5
"""A process that still runs this long after its connection broke did not crash."""
LOG_TAIL_BYTES: Final = 4096
RETRY_S: Final = 0.5
"""Least wait after an incarnation that did not become ready."""
RETRY_DOWN_S: Final = 5.0
"""The same while the agent is down."""


@dataclass(eq=False)
class _Incarnation:
    """One child process. ``died`` is set by whoever notices first that it ended or has to."""

    epoch: int
    process: subprocess.Popen[bytes]
    died: asyncio.Future[AgentDied]
    exited: asyncio.Event
    goodbye: asyncio.Future[str]
    ready: bool = False
    disconnected: bool = False  # its connection broke, though it was not silent


class AgentProcess:
    """Keeps one agent running. Lives in the event loop's thread.

    Attributes:
        ready: set when the agent is ready for the first time.
        error: why it is gone for good.
    """

    def __init__(
        self,
        spec: AgentSpec,
        broker: BrokerControl,
        run: bytes,
        log: Path,
        on_event: Callable[[AgentEvent], None],
        limits: AgentLimits,
    ) -> None:
        self._spec = spec
        self._broker = broker
        self._run_id = run
        self._log = log
        self._on_event = on_event
        self._limits = limits
        self._budget = RestartBudget(limits.restarts)
        self._current: _Incarnation | None = None
        self._became_ready = False  # the latest incarnation
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self.error: AgentwireError | None = None

    def handle(self, event: PeerEvent) -> None:
        current = self._current
        if current is None or current.epoch != event.epoch:
            return  # of an earlier incarnation
        match event:
            case PeerReady(model=model):
                current.ready = self._became_ready = True
                self.ready.set()
                self._on_event(
                    AgentReady(self._spec.name, current.epoch, current.process.pid, model)
                )
            case PeerProgress(stage=stage, fraction=fraction):
                self._on_event(AgentLoading(self._spec.name, current.epoch, stage, fraction))
            case PeerBusy(busy_ms=busy_ms) if busy_ms > self._limits.progress_s * 1000:
                self._died(current, f"it has computed one batch for {busy_ms / 1000:.0f} s")
            case PeerLeft(reason=reason):
                if not current.goodbye.done():
                    current.goodbye.set_result(reason)
            case PeerLost(reason=reason, silent=silent):
                current.disconnected = not silent
                self._died(current, f"lost by the bus: {reason}")
            case _:
                pass

    def begin_stop(self) -> None:
        self._stopping.set()
        if self._current is not None:
            self._died(self._current, "it was stopped")

    def kill(self) -> None:
        if self._current is not None:
            _signal(self._current.process, signal.SIGKILL)

    async def run(self) -> None:
        """Runs one incarnation after the other, until stopped or out of restarts.

        An agent that worked before and cannot be started is down once its restarts are used up. The
        cause may pass (no memory, no descriptors), so it is tried again, with a new budget.
        """
        epoch, is_down = 0, False
        while not self._stopping.is_set():
            epoch, started = epoch + 1, time.monotonic()
            died = await self._attempt(epoch)
            if self._stopping.is_set():
                return
            is_down = is_down and not self._became_ready
            restart_in = None if died.error or is_down else self._budget.take(time.monotonic())
            if restart_in is not None and not self._became_ready:
                restart_in = max(restart_in, RETRY_S)
            if died.pid or not is_down:
                self._on_event(replace(died, restart_in=restart_in))
                if restart_in is None:
                    self.error = died.error or self._budget_spent(died.reason)
                    self._on_event(AgentDown(self._spec.name, died.reason, self.error))
            if restart_in is None:
                if died.error or self._became_ready or not self.ready.is_set():
                    return
                is_down, self._budget = True, RestartBudget(self._limits.restarts)
                restart_in = max(RETRY_DOWN_S, time.monotonic() - started)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), restart_in)

    async def _attempt(self, epoch: int) -> AgentDied:
        """One incarnation; whatever fails in supervising it counts as its death."""
        self._became_ready = False
        try:
            return await self._run_incarnation(epoch)
        except Exception as error:  # no file descriptors, no memory, no folder for the log, …
            if not isinstance(error, OSError | MemoryError):
                log.exception("agent %s could not be supervised", self._spec.name)
            self.kill()
            self._current = None
            reason = f"it could not be started: {describe(error)}"
            return AgentDied(self._spec.name, epoch, 0, reason, crashed=False)

    async def _run_incarnation(self, epoch: int) -> AgentDied:
        """One incarnation, from spawn to the end of its process."""
        token = new_token()  # of this incarnation: nobody else can take its place
        self._broker.expect(self._spec.name, epoch, token)
        current = self._current = self._spawn(epoch, token)
        self._on_event(AgentStarted(self._spec.name, epoch, current.process.pid))
        loading = asyncio.get_running_loop().call_later(
            self._limits.load_s, self._check_loaded, current
        )
        try:
            died = await current.died
            error = await self._input_error(current)
        finally:
            loading.cancel()
            only_disconnected = await self._only_disconnected(current)
            await self._terminate(current)
            self._current = None
            self._broker.disconnect(self._spec.name, epoch)
        crashed = not only_disconnected and current.process.returncode != ExitCode.DONE
        reason = str(error) if error else died.reason
        return replace(died, reason=reason, crashed=crashed, error=error)

    def _died(self, incarnation: _Incarnation, reason: str) -> None:
        if not incarnation.died.done():
            epoch, pid = incarnation.epoch, incarnation.process.pid
            incarnation.died.set_result(AgentDied(self._spec.name, epoch, pid, reason))

    def _check_loaded(self, incarnation: _Incarnation) -> None:
        if not incarnation.ready:
            self._died(incarnation, f"it did not load its model within {self._limits.load_s:.0f} s")

    async def _input_error(self, incarnation: _Incarnation) -> InputError | None:
        """The error in the Goodbye of an agent that could not start."""
        if incarnation.process.returncode != ExitCode.INPUT:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_WAIT_S):
                return decode_error(await asyncio.shield(incarnation.goodbye))
        return InputError(
            f"The agent {self._spec.name} cannot start: {self._last_log_line()}.",
            hint=f"Its log is {self._log}.",
        )

    async def _only_disconnected(self, incarnation: _Incarnation) -> bool:
        """Whether only its connection broke, so that no request can be the cause.

        The connection of a process that crashes breaks too, and the broker may see that before the
        exit. So the process gets a moment to exit.
        """
        if incarnation.disconnected and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_WAIT_S):
                    await incarnation.exited.wait()
        if not incarnation.exited.is_set():
            return incarnation.disconnected
        return incarnation.process.returncode == ExitCode.BUS_LOST

    async def _terminate(self, incarnation: _Incarnation) -> None:
        """Ends the process if it still runs. When the run stops, it gets time to finish."""
        process = incarnation.process
        if not incarnation.exited.is_set() and self._stopping.is_set():
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.stop_s):
                    await incarnation.exited.wait()
        if not incarnation.exited.is_set():
            _signal(process, signal.SIGKILL)
            await incarnation.exited.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _spawn(self, epoch: int, token: str) -> _Incarnation:
        address = BusAddress(
            endpoint=self._broker.endpoint, run=self._run_id.hex(), epoch=epoch, token=token
        )
        counts = str(self._log.with_suffix(".json").absolute())
        bootstrap = AgentBootstrap(agent=self._spec, bus=address, telemetry=counts)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "agentwire.agent.process"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        incarnation = _Incarnation(
            epoch, process, loop.create_future(), asyncio.Event(), loop.create_future()
        )

        def watch() -> None:
            process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(exited)

        def exited() -> None:
            incarnation.exited.set()
            self._died(incarnation, _exit_reason(process.returncode))

        try:
            threading.Thread(target=watch, name=f"wait {self._spec.name}", daemon=True).start()
        except RuntimeError:  # no more threads
            _signal(process, signal.SIGKILL)
            process.wait()
            raise
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # it has exited already, and ``watch`` reports that
                process.stdin.write(bootstrap.model_dump_json().encode() + b"\n")
                process.stdin.flush()
        return incarnation

    def _budget_spent(self, reason: str) -> AgentwireError:
        policy = self._limits.restarts
        return AgentwireError(
            f"The agent {self._spec.name} died {policy.restarts + 1} times within "
            f"{policy.window_s:.0f} s and is not restarted (last: {reason}; its log ends: "
            f"{self._last_log_line()}).",
            hint=f"Read {self._log}.",
        )

    def _last_log_line(self) -> str:
        try:
            tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            tail = ""
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return message_of(lines[-1])[:200] if lines else "the log is empty"


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signals the child's whole session, since it may have children of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _exit_reason(code: int) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the process was killed by {name}"
    reasons = {
        ExitCode.DONE: "the process exited by itself",
        ExitCode.BUS_LOST: "the process lost its connection to the bus",
        ExitCode.ERROR: "the process ended with an internal error",
        ExitCode.INPUT: "the process could not start",
    }
    return reasons.get(ExitCode(code), "") if code in set(ExitCode) else f"exit status {code}"
