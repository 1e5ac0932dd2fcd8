"""A benchmark of latency and throughput from start to record."""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import anyio

from agentwire.benchmark.drive import (
    Burst,
    MessageStats,
    Send,
    batches,
    one_by_one,
    sustained,
    warm,
)
from agentwire.benchmark.figures import figures_of, record_of
from agentwire.benchmark.machine import conditions, load_average
from agentwire.benchmark.plan import Benchmark, Measurement, measurements_of, turns
from agentwire.benchmark.record import BenchAgent, BenchRecord
from agentwire.benchmark.setup import BenchSetup
from agentwire.errors import AgentwireError, InputError
from agentwire.evaluation.result import SubstitutionRecord
from agentwire.evaluation.runner import InterruptScope, first_error
from agentwire.evaluation.summary import hardware, versions
from agentwire.runtime.pending import Outcome, replies_of
from agentwire.runtime.reply import ProgressEvent
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.inventory import Inventory
from agentwire.telemetry.counts import read_counts
from agentwire.telemetry.journal import NoJournal

LEAST = 3
"""Messages of a latency measurement in each round, however long they take."""

RELAY_IN_FLIGHT = 2
"""Text relay writes one message while it reads another. More would only wait."""


class BenchObserver(Protocol):
    """Called in the event loop; must not block."""

    def progress(self, event: ProgressEvent) -> None:
        """An agent loads, is ready, was lost or starts again."""

    def loading(self, what: str) -> None:
        """Something other than an agent loads."""

    def measured(self, round_: int, rounds: int, measurement: Measurement, burst: Burst) -> None:
        """One measurement of one round is done."""

    def failed(self, measurement: Measurement, reason: str) -> None:
        """A measurement is not possible."""


@dataclass
class Bench:
    """One benchmark; ``keep`` gets the record so far after every measurement."""

    setup: BenchSetup
    benchmark: Benchmark
    command: str
    observer: BenchObserver
    keep: Callable[[BenchRecord], None]
    _seen: dict[Measurement, list[Burst]] = field(default_factory=dict)
    _errors: dict[Measurement, str] = field(default_factory=dict)
    _agents: dict[str, BenchAgent] = field(default_factory=dict)
    _batches: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    _clock: float = field(default_factory=time.monotonic)
    _started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if Inventory.here().gpus():
            import torch  # noqa: F401  # hardware() names GPUs only if torch is loaded
        self._versions, self._hardware = versions(), hardware()
        self._load = load_average()

    async def run(self) -> BenchRecord:
        """Measures everything; an interrupt (Ctrl-C, SIGTERM) keeps what was measured so far."""
        interrupt = InterruptScope()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(interrupt.watch)
                with interrupt.scope(), tempfile.TemporaryDirectory(prefix="agentwire-") as folder:
                    try:
                        await self._run_agents(Path(folder))
                    finally:
                        self._batches = read_counts(Path(folder) / "logs")
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            self.keep(self.record(interrupted=True))
            raise first_error(errors) from None
        if self._errors and not any(self._seen.values()):
            measurement, reason = next(iter(self._errors.items()))
            raise InputError(
                f"Nothing could be measured: {measurement.method}: {reason}",
                hint="Correct the scenario, or leave the method out with --methods.",
            )
        record = self.record(interrupted=interrupt.requested)
        self.keep(record)
        return record

    async def _run_agents(self, folder: Path) -> None:
        async with Runtime(
            self.setup.deployment,
            run_folder=folder,
            journal=NoJournal(),  # a journal would write a line for every timed message
            progress=self.observer.progress,
        ) as runtime:
            for name, spec in self.setup.deployment.processes.items():
                info = runtime.agents.get(name)
                self._agents[name] = BenchAgent(
                    model=spec.model,
                    weights=spec.weights,
                    dtype=spec.dtype,
                    device=spec.device,
                    threads=spec.threads,
                    fingerprint=info.fingerprint if info else "",
                )
            await self._measure(runtime)

    async def _measure(self, runtime: Runtime) -> None:
        plan = self.setup.plan
        groups = measurements_of(plan, self.benchmark)
        self._seen = {measurement: [] for group in groups for measurement in group}
        texts = {tokens: self.setup.texts(tokens) for tokens in {m.text_tokens for m in self._seen}}
        sends, close = self._methods(runtime)
        # A garbage collection that walks through the models in this process would stop the clock
        # of a message for 0.3 s.
        gc.collect()
        gc.freeze()
        try:
            for round_, measurement in turns(groups, plan.rounds):
                if measurement in self._errors:
                    continue
                try:
                    burst = await self._burst(
                        measurement,
                        sends[measurement.method],
                        texts[measurement.text_tokens],
                        warm_up=plan.warm_up if round_ == 0 else 0,
                    )
                except AgentwireError as error:
                    self._errors[measurement] = error.message
                    self.observer.failed(measurement, error.message)
                    continue
                self._seen[measurement].append(burst)
                self.observer.measured(round_, plan.rounds, measurement, burst)
                self.keep(self.record(interrupted=True))
        finally:
            gc.unfreeze()
            close()

    async def _burst(
        self, measurement: Measurement, send: Send, texts: list[str], *, warm_up: int
    ) -> Burst:
        plan = self.setup.plan
        messages = batches(texts, measurement.batch_size)
        await warm(send, messages, warm_up)
        if measurement.kind == "latency":
            most = max(LEAST, plan.messages // plan.rounds)
            seconds = plan.latency_seconds or plan.seconds
            return await one_by_one(send, messages, most=most, least=LEAST, seconds=seconds)
        in_flight = self._in_flight(measurement)
        return await sustained(send, messages, in_flight=in_flight, seconds=plan.seconds)

    def _in_flight(self, measurement: Measurement) -> int:
        if measurement.kind == "latency":
            return 1
        most = self.setup.plan.in_flight * self.setup.resolved.most_replicas
        if measurement.method == "text_relay":
            return min(most, RELAY_IN_FLIGHT)
        return most * (2 if measurement.method == "receiver_replicas" else 1)

    def _methods(self, runtime: Runtime) -> tuple[dict[str, Send], Callable[[], None]]:
        """A function that sends a message by each method, and one that frees their models.

        ``bridge`` sends soft tokens; a row that would go as text is an error. ``receiver_replicas``
        is ``receiver_direct`` with two copies of the receiver in turn, one on each of the bridge's
        devices: what the bridge's hardware does without a bridge. ``in_process`` runs the bridge's
        two models in this process, without agents and bus (``reference``).
        """
        setup = self.setup
        sender, receiver = setup.sender, setup.receiver
        copies = itertools.cycle([receiver, setup.replica or receiver])

        async def bridge(texts: Sequence[str]) -> MessageStats:
            return _stats_of(
                await runtime.send_batch(sender, receiver, texts, channel="soft", fallback="error")
            )

        async def text_relay(texts: Sequence[str]) -> MessageStats:
            return _stats_of(await runtime.send_batch(sender, receiver, texts, channel="text"))

        async def receiver_direct(texts: Sequence[str]) -> MessageStats:
            return _stats_of(await runtime.direct_batch(receiver, texts))

        async def receiver_replicas(texts: Sequence[str]) -> MessageStats:
            return _stats_of(await runtime.direct_batch(next(copies), texts))

        sends: dict[str, Send] = {
            "bridge": bridge,
            "text_relay": text_relay,
            "receiver_direct": receiver_direct,
            "receiver_replicas": receiver_replicas,
        }
        if "in_process" not in setup.plan.methods:
            return sends, lambda: None
        from agentwire.benchmark.reference import Reference  # it may load torch into this process

        self.observer.loading("both models again, in this process")
        agents = setup.deployment.agents
        wire = setup.resolved.wire.spec.name
        reference = Reference(agents[sender], agents[receiver], wire, setup.task)
        return {**sends, "in_process": reference}, reference.close

    def record(self, *, interrupted: bool) -> BenchRecord:
        """What was measured so far."""
        resolved = self.setup.resolved
        return BenchRecord(
            benchmark=self.benchmark,
            scenario=resolved.scenario.name,
            started=self._started,
            seconds=round(time.monotonic() - self._clock, 3),
            interrupted=interrupted,
            command=self.command,
            labels=[*self.setup.labels(), *conditions(self._load)],
            substitutions=[
                SubstitutionRecord.model_validate(asdict(s)) for s in resolved.substitutions
            ],
            agents=self._agents,
            settings={
                **self.setup.plan.model_dump(mode="json"),
                "seed": resolved.scenario.seed,
                "soft_tokens": resolved.wire.spec.soft_tokens,
                "bridge": resolved.wire.bridge,
                "layer": resolved.wire.card.layer if resolved.wire.card else None,
                "load_average": self._load,
            },
            batches=self._batches,
            figures=figures_of(self._seen, self.setup.plan),
            cells=[
                record_of(one, bursts, self._in_flight(one), self._errors.get(one, ""))
                for one, bursts in self._seen.items()
                if bursts or one in self._errors
            ],
            versions=self._versions,
            hardware=self._hardware,
        )


def _stats_of(outcomes: Sequence[Outcome]) -> MessageStats:
    """Stages of the slowest row; raises RequestError if a row has no answer."""
    slowest = max(replies_of(outcomes), key=lambda reply: reply.latency_ms)
    return MessageStats(slowest.stages, slowest.payload_bytes)
