"""Runs every method of a plan over the same rows, through processes and the bus.

Methods run one after the other. Each sends its rows in batches of ``batch_size`` with ``in_flight``
batches outstanding per replica. One warm-up batch before each method is not counted: it pays for
memory, thread pools and graphs. Predictions are written as answers arrive, so Ctrl-C loses no
answer, and a resumed run sends only the missing rows.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio

from agentwire.config import lock_file
from agentwire.errors import AgentwireError, BridgeError, NackCode, RequestError
from agentwire.evaluation.methods import MethodSpec
from agentwire.evaluation.plan import LOCK_FILE, RunPlan, write_config
from agentwire.evaluation.predictions import Predictions, record_of
from agentwire.evaluation.result import AgentRecord, MethodRecord, RunResult
from agentwire.evaluation.summary import method_record, summarise
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import ProgressEvent, Reply
from agentwire.runtime.runtime import Runtime
from agentwire.telemetry.journal import Journal
from agentwire.telemetry.row_tally import is_right

WARM_UP_ROWS = 4
"""Rows of a warm-up batch on a CPU; on GPUs it is a full batch."""
NO_SOFT = {NackCode.NO_BRIDGE, NackCode.BRIDGE_MISMATCH, NackCode.PROMPT_MISMATCH}
"""Reasons why a wire can never carry soft tokens."""
FATAL = {NackCode.AGENT_DOWN, NackCode.CLOSING, NackCode.UNAUTHORIZED, NackCode.VERSION}
"""Causes after which no other row can be answered."""


class RunDisplay(Protocol):
    """Shows a run. Methods are called in the event loop and must not block."""

    def progress(self, event: ProgressEvent) -> None:
        """An agent loads, is ready, died or restarts."""

    def method_started(self, method: MethodSpec, done: int, total: int) -> None:
        """``done`` of ``total`` rows were answered in an earlier session."""

    def rows_done(self, method: MethodSpec, rows: int, correct: int) -> None:
        """More rows have an outcome."""

    def method_finished(self, method: MethodSpec, record: MethodRecord) -> None:
        """The figures of one method."""


class InterruptScope:
    """Turns Ctrl-C and SIGTERM into the end of a cancel scope, for an orderly shutdown."""

    def __init__(self) -> None:
        self.requested = False
        self._scope: anyio.CancelScope | None = None

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The body is cancelled by an interrupt, or at once if there was one."""
        with anyio.CancelScope() as scope:
            self._scope = scope
            if self.requested:
                scope.cancel()
            try:
                yield
            finally:
                self._scope = None

    async def watch(self) -> None:
        """Waits for signals until cancelled. Only the main thread receives them."""
        if threading.current_thread() is not threading.main_thread():
            return
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                self.requested = True
                if self._scope is not None:
                    self._scope.cancel()


async def run_plan(plan: RunPlan, display: RunDisplay) -> RunResult:
    """Runs every method of the plan and writes the run's folder.

    An interrupt (Ctrl-C, SIGTERM) ends the run early: answers are kept and the result is marked
    ``interrupted``.

    Raises:
        BridgeError: an agent refused the bridge, so its method would measure text relay.
        RequestError: an agent is down for good; answers are kept.
        InputError: another process runs in this folder, or an earlier session's files are damaged.
    """
    run = _Run(plan, display)
    interrupt = InterruptScope()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(interrupt.watch)
            await run.go(interrupt)
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        run.result(interrupted=True)  # writes the answers so far
        raise first_error(errors) from None
    finally:
        run.close()
    return run.result(interrupted=interrupt.requested)


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report: one of agentwire's own if there is any."""
    leaves = [
        first_error(error) if isinstance(error, BaseExceptionGroup) else error
        for error in errors.exceptions
    ]
    return next((e for e in leaves if isinstance(e, AgentwireError)), leaves[0])


class _Run:
    """The state of one session of a run."""

    def __init__(self, plan: RunPlan, display: RunDisplay) -> None:
        self._plan, self._wanted = plan, plan.wanted
        self._display = display
        with ExitStack() as files:
            files.enter_context(lock_file(plan.folder / LOCK_FILE, f"The run {plan.folder}"))
            self._predictions = Predictions(plan.folder, plan.wanted, plan.label_words)
            files.callback(self._predictions.close)
            self._journal = Journal(plan.folder / "journal.jsonl")
            files.callback(self._journal.close)
            write_config(plan)
            self.close = files.pop_all().close
        self._agents: dict[str, AgentRecord] = {}
        self._rates: dict[str, float] = {}
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()

    async def go(self, interrupt: InterruptScope) -> None:
        plan = self._plan
        self._journal.write("run_started", run_id=plan.run_id, resumed=plan.resumed)
        async with AsyncExitStack() as stack:
            with interrupt.scope():
                runtime = await stack.enter_async_context(
                    Runtime(
                        plan.resolved,
                        run_folder=plan.folder,
                        journal=self._journal,
                        progress=self._display.progress,
                        remote=plan.remote,
                        record=plan.record,
                    )
                )
                if plan.metrics_port is not None:
                    from agentwire.telemetry.metrics import serving

                    port = stack.enter_context(serving(runtime.registry, plan.metrics_port))
                    self._journal.write("metrics_served", port=port)
            if interrupt.requested:
                return
            try:
                with interrupt.scope():
                    for method in plan.methods:
                        await self._run_method(method, runtime)
            finally:
                self._note_agents(runtime)
                self._journal.write("run_ended", interrupted=interrupt.requested)

    def _note_agents(self, runtime: Runtime) -> None:
        ready = runtime.agents
        for name, spec in Deployment.of(self._plan.resolved).processes.items():
            if info := ready.get(name):
                self._agents[name] = AgentRecord(
                    pid=info.pid,
                    model=info.model,
                    device=info.device,
                    fingerprint=info.fingerprint,
                    dtype=spec.dtype,
                    restarts=info.restarts,
                )

    async def _run_method(self, method: MethodSpec, runtime: Runtime) -> None:
        plan = self._plan
        todo = self._predictions.missing(method.name, plan.rows)
        self._display.method_started(method, len(plan.rows) - len(todo), len(plan.rows))
        if todo:
            if method.prepare is not None:
                await method.prepare(
                    runtime,
                    plan.resolved,
                    lambda stage, done: self._display.progress(
                        ProgressEvent(method.title, stage, done)
                    ),
                )
                self._display.progress(ProgressEvent(method.title, "ready", 1.0))
            await self._warm_up(method, runtime, todo)
            self._journal.write("method_started", method=method.name, rows=len(todo))
            start = time.monotonic()
            try:
                await self._score(method, runtime, todo)
            finally:  # an interrupted method also has figures
                done = len(todo) - len(self._predictions.missing(method.name, todo))
                if done:
                    self._rates[method.name] = done / max(time.monotonic() - start, 1e-9)
            self._journal.write("method_finished", method=method.name)
        record = method_record(method, plan, self._predictions, self._rates.get(method.name))
        self._display.method_finished(method, record)

    async def _warm_up(self, method: MethodSpec, runtime: Runtime, todo: Sequence[int]) -> None:
        plan = self._plan
        size = plan.resolved.scenario.batch_size
        rows = todo[: min(size, WARM_UP_ROWS) if plan.resolved.on_cpu else size]
        outcomes = await self._outcomes(method, runtime, rows)
        replies = [o for o in outcomes if isinstance(o, Reply)]
        if method.needs_bridge and replies and all(r.reason in NO_SOFT for r in replies):
            wire = plan.resolved.wire
            raise BridgeError(
                f"wire {wire.spec.name}: the bridge {wire.bridge} cannot be used "
                f"({replies[0].reason}), so this would measure text relay.",
                hint="Check it with `agentwire bridges verify`, or train it again.",
            )

    async def _score(self, method: MethodSpec, runtime: Runtime, todo: Sequence[int]) -> None:
        scenario = self._plan.resolved.scenario
        outstanding = anyio.Semaphore(scenario.in_flight * self._plan.resolved.most_replicas)

        async def one(rows: Sequence[int]) -> None:
            try:
                await self._send(method, runtime, rows)
            finally:
                outstanding.release()

        async with anyio.create_task_group() as group:
            for start in range(0, len(todo), scenario.batch_size):
                await outstanding.acquire()
                group.start_soon(one, todo[start : start + scenario.batch_size])

    async def _send(self, method: MethodSpec, runtime: Runtime, rows: Sequence[int]) -> None:
        outcomes = await self._outcomes(method, runtime, rows)
        records: list[dict[str, Any]] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, RequestError) and outcome.code in FATAL:
                raise outcome
            records.append(record_of(method.name, row, self._wanted[row], outcome))
        self._predictions.add(records)
        correct = sum(map(is_right, records))
        self._display.rows_done(method, len(records), correct)

    async def _outcomes(
        self, method: MethodSpec, runtime: Runtime, rows: Sequence[int]
    ) -> list[Outcome]:
        plan = self._plan
        chosen = [plan.dataset.rows[row] for row in rows]
        texts = [row.text for row in chosen]
        if plan.label_words:
            return await method.send(runtime, plan.resolved, texts)
        questions = [row.question for row in chosen]
        return await method.send(runtime, plan.resolved, texts, questions)

    def result(self, *, interrupted: bool) -> RunResult:
        result = summarise(
            self._plan,
            self._predictions,
            self._agents,
            self._rates,
            started=self._started,
            seconds=time.monotonic() - self._clock,
            interrupted=interrupted,
        )
        result.write(self._plan.folder / "result.json")
        return result
