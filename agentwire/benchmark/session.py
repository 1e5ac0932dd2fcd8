"""A benchmark from start to record: every cell in turn, what was seen kept."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import anyio

from agentwire.benchmark import methods
from agentwire.benchmark.drive import Burst, Send, batches, one_by_one, sustained, warm
from agentwire.benchmark.figures import figures_of, record_of
from agentwire.benchmark.machine import conditions, load_average
from agentwire.benchmark.plan import Benchmark, Cell, cells_of, turns
from agentwire.benchmark.record import BenchAgent, BenchRecord
from agentwire.benchmark.setting import Setting
from agentwire.errors import AgentwireError, InputError
from agentwire.evaluation.result import SubstitutionRecord
from agentwire.evaluation.runner import Interrupt, first_error
from agentwire.evaluation.summary import hardware, versions
from agentwire.runtime.reply import ProgressEvent
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.inventory import Inventory
from agentwire.spec.backends import BACKENDS
from agentwire.telemetry.counts import read_counts
from agentwire.telemetry.journal import NoJournal

LEAST = 3
"""Messages of a latency figure in each round, however long they take."""

RELAY_IN_FLIGHT = 2
"""Messages of text relay: one that is written while the last one is read. More would only wait."""


class Display(Protocol):
    """Who is told what happens. Called in the event loop: must not block."""

    def progress(self, event: ProgressEvent) -> None:
        """An agent loads, is ready, was lost or starts again."""

    def loading(self, what: str) -> None:
        """Something else loads."""

    def measured(self, round_: int, rounds: int, cell: Cell, burst: Burst) -> None:
        """One cell of one round is done."""

    def failed(self, cell: Cell, reason: str) -> None:
        """A cell could not be measured."""


@dataclass
class Bench:
    """One benchmark.

    Args:
        setting: what runs.
        benchmark: which cells.
        command: what the user typed.
        display: told what happens.
        keep: called with the record so far after every cell.
    """

    setting: Setting
    benchmark: Benchmark
    command: str
    display: Display
    keep: Callable[[BenchRecord], None]
    _seen: dict[Cell, list[Burst]] = field(default_factory=dict)
    _errors: dict[Cell, str] = field(default_factory=dict)
    _agents: dict[str, BenchAgent] = field(default_factory=dict)
    _batches: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    _clock: float = field(default_factory=time.monotonic)
    _started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if Inventory.here().gpus():
            import torch  # noqa: F401  # hardware() names GPUs only where torch is loaded
        self._versions, self._hardware = versions(), hardware()
        self._load = load_average()

    async def run(self) -> BenchRecord:
        """Measures everything; an interrupt (Ctrl-C, SIGTERM) keeps what was seen until then.

        Raises:
            InputError, AgentwireError: the agents do not start, or nothing could be measured.
        """
        interrupt = Interrupt()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(interrupt.watch)
                with interrupt.scope(), tempfile.TemporaryDirectory(prefix="agentwire-") as folder:
                    try:
                        async with self._runtime(Path(folder)) as runtime:
                            self._note_agents(runtime)
                            await self._measure(runtime)
                    finally:
                        self._batches = read_counts(Path(folder) / "logs")
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            self.keep(self.record(interrupted=True))
            raise first_error(errors) from None
        if self._errors and not any(self._seen.values()):
            cell, reason = next(iter(self._errors.items()))
            raise InputError(
                f"nothing could be measured: {cell.method}: {reason}",
                hint="Correct the scenario, or leave the method out with --methods.",
            )
        record = self.record(interrupted=interrupt.requested)
        self.keep(record)
        return record

    def _runtime(self, folder: Path) -> Runtime:
        # A journal would write a line for every message that is timed.
        return Runtime(
            self.setting.deployment,
            run_folder=folder,
            journal=NoJournal(),
            progress=self.display.progress,
        )

    async def _measure(self, runtime: Runtime) -> None:
        plan = self.setting.plan
        groups = cells_of(plan, self.benchmark)
        self._seen = {cell: [] for group in groups for cell in group}
        texts = {t: self.setting.texts(t) for t in dict.fromkeys(c.text_tokens for c in self._seen)}
        sends, close = self._ways(runtime)
        # A collection that walks through the models in this process stops what is timed for 0.3 s.
        gc.collect()
        gc.freeze()
        try:
            for round_, cell in turns(groups, plan.rounds):
                if cell in self._errors:
                    continue
                messages = batches(texts[cell.text_tokens], cell.batch_size)
                try:
                    burst = await self._burst(cell, sends[cell.method], messages, round_)
                except AgentwireError as error:
                    self._errors[cell] = error.message
                    self.display.failed(cell, error.message)
                    continue
                self._seen[cell].append(burst)
                self.display.measured(round_, plan.rounds, cell, burst)
                self.keep(self.record(interrupted=True))
        finally:
            gc.unfreeze()
            close()

    async def _burst(
        self, cell: Cell, send: Send, messages: Iterator[Sequence[str]], round_: int
    ) -> Burst:
        plan = self.setting.plan
        if round_ == 0:
            await warm(send, messages, plan.warm_up)
        if cell.kind == "latency":
            most = max(LEAST, plan.messages // plan.rounds)
            seconds = plan.latency_seconds or plan.seconds
            return await one_by_one(send, messages, most=most, least=LEAST, seconds=seconds)
        return await sustained(
            send, messages, in_flight=self._in_flight(cell), seconds=plan.seconds
        )

    def _in_flight(self, cell: Cell) -> int:
        if cell.kind == "latency":
            return 1
        most = self.setting.plan.in_flight * self.setting.resolved.most_replicas
        if cell.method == "text_relay":
            return min(most, RELAY_IN_FLIGHT)
        return most * (2 if cell.method == "receiver_replicas" else 1)

    def _ways(self, runtime: Runtime) -> tuple[dict[str, Send], Callable[[], None]]:
        setting = self.setting
        sender, receiver = setting.sender, setting.receiver
        ways: dict[str, Send] = {
            "bridge": methods.bridge(runtime, sender, receiver),
            "text_relay": methods.text_relay(runtime, sender, receiver),
            "receiver_direct": methods.direct(runtime, [receiver]),
        }
        if setting.replica is not None:
            ways["receiver_replicas"] = methods.direct(runtime, [receiver, setting.replica])
        if "in_process" not in setting.plan.methods:
            return ways, lambda: None
        from agentwire.benchmark.reference import Reference  # it may load torch into this process

        self.display.loading("the models once more, in this process")
        agents = setting.deployment.agents
        wire = setting.resolved.wire.spec.name
        reference = Reference(agents[sender], agents[receiver], wire, setting.task)
        return {**ways, "in_process": reference}, reference.close

    def _note_agents(self, runtime: Runtime) -> None:
        for name, spec in self.setting.deployment.processes.items():
            info = runtime.agents.get(name)
            self._agents[name] = BenchAgent(
                model=spec.model,
                weights=spec.weights,
                dtype=spec.dtype,
                device=spec.device,
                threads=spec.threads,
                fingerprint=info.fingerprint if info else "",
            )

    # -- the record -------------------------------------------------------------------------

    def record(self, *, interrupted: bool) -> BenchRecord:
        """What was seen so far."""
        setting = self.setting
        resolved = setting.resolved
        return BenchRecord(
            benchmark=self.benchmark,
            scenario=resolved.scenario.name,
            started=self._started,
            seconds=round(time.monotonic() - self._clock, 3),
            interrupted=interrupted,
            command=self.command,
            labels=[*labels_of(setting), *conditions(self._load)],
            substitutions=[
                SubstitutionRecord.model_validate(asdict(s)) for s in resolved.substitutions
            ],
            agents=self._agents,
            settings={
                **setting.plan.model_dump(mode="json"),
                "seed": resolved.scenario.seed,
                "soft_tokens": resolved.wire.spec.soft_tokens,
                "bridge": resolved.wire.bridge,
                "layer": resolved.wire.card.layer if resolved.wire.card else None,
                "load_average": self._load,
            },
            batches=self._batches,
            figures=figures_of(self._seen, setting.plan),
            cells=[
                record_of(cell, bursts, self._in_flight(cell), self._errors.get(cell, ""))
                for cell, bursts in self._seen.items()
                if bursts or cell in self._errors
            ],
            versions=self._versions,
            hardware=self._hardware,
        )


def labels_of(setting: Setting) -> list[str]:
    """What a reader must know before any figure."""
    labels = [
        f"{s.used} stands in for {s.wanted}: {s.reason}" for s in setting.resolved.substitutions
    ]
    random = [name for name, spec in setting.deployment.agents.items() if spec.weights == "random"]
    if random:
        labels.append(f"random weights ({', '.join(random)}): speed only, answers mean nothing")
    fake = [
        name
        for name, spec in setting.deployment.agents.items()
        if not BACKENDS.get(spec.backend).needs_weights
    ]
    if fake:
        labels.append(f"fake models ({', '.join(fake)}): no language model was measured")
    labels.append("texts are made of random words; accuracy is not measured")
    return labels
