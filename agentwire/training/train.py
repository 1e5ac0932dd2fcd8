"""``agentwire train``: from resolved scenarios to bridge folders."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from agentwire.config import Config, ensure_writable, lock_file, real_path
from agentwire.download import OnProgress
from agentwire.errors import BridgeError
from agentwire.model.transformers import trunk
from agentwire.scenario.resolve import Resolved
from agentwire.scenario.shares import texts_for
from agentwire.task.datasets import Dataset
from agentwire.training import loop
from agentwire.training.cards import training_record, write_bridges
from agentwire.training.checkpoint import Checkpoint
from agentwire.training.jobs import TrainingJob, run_in_groups, training_jobs
from agentwire.training.joint import JointBridge, JointStates
from agentwire.training.loop import Trained
from agentwire.training.models import load_agent, new_bridge
from agentwire.training.objective import BridgeObjective, TrainingTask
from agentwire.training.reporting import (
    BEGIN,
    TrainingReport,
    draw_curve,
    require_plots,
    within,
)
from agentwire.training.states import StateCache, cache_layers, evenly
from agentwire.wire.messages import ModelIdentity

LOADED = 0.03
"""Fraction of the whole job that is done when the receiver is loaded."""


def train_scenario(
    resolved: Resolved,
    *,
    out: Path,
    progress: OnProgress,
    config: Config | None = None,
    plot: Path | None = None,
) -> Path:
    """Trains the bridge of one scenario and returns its folder: see ``train_scenarios``."""
    plots = {resolved.wire.bridge: plot} if plot is not None else {}
    (folder,) = train_scenarios([resolved], out=out, progress=progress, config=config, plots=plots)
    return folder


def train_scenarios(
    resolved: Sequence[Resolved],
    *,
    out: Path,
    progress: OnProgress,
    config: Config | None = None,
    plots: Mapping[str, Path] | None = None,
) -> list[Path]:
    """Trains the bridges of the scenarios' first wires and writes them to ``out``/<bridge name>/.

    The scenarios differ only in settings of the bridge (``resolve.training_key``), or they name one
    bridge for several tasks. If several senders share the wire, their bridges are trained together.
    A task of a series trains the bridge of the whole series.

    Models load once, and each sender reads each text once. Bridges train side by side. On a CPU
    each becomes what it would be if trained alone, apart from rounding; on a GPU dropout depends on
    the bridges beside it. A training that was interrupted resumes at its last evaluation.

    Args:
        resolved: the models' weights are on this machine.
        progress: receives the stage and the fraction done.
        plots: files for plots of the losses, by bridge.

    Returns:
        the folder of each bridge (of a set, the first sender's; of a shared bridge, its only one).

    Raises:
        ValueError: the scenarios cannot be trained together.
        ScenarioError: a scenario has no task, a sender has no layer, or another process trains one
            of these bridges.
        DataError: the rows are not available, or they are the rows that are scored.
        ModelError, DeviceError: a model cannot be loaded.
        BridgeError: a loss is not finite; the other bridges are written.
    """
    config = config or Config.from_env()
    if plots:
        require_plots()
    jobs = training_jobs(resolved, config)
    with ExitStack() as locks:
        place = hashlib.sha256(str(real_path(out)).encode()).hexdigest()[:8]
        for job in jobs:
            file = ensure_writable(config.home / "training") / f"{job.name}-{place}.lock"
            locks.enter_context(lock_file(file, f"The training of {job.name}"))
        _Trainer(jobs, out, progress, config, plots or {}).run()
    return [out / job.bridges[0] for job in jobs]


class _Texts:
    """The texts of all jobs, in the passes in which each sender reads them.

    Jobs for one data set draw rows from the same split, so each text is read once. The data sets
    of a shared bridge are read one by one: their statistics count alike (``states.evenly``).
    """

    def __init__(self, jobs: Sequence[TrainingJob]) -> None:
        parts = [d for job in jobs for data in job.data for d in (data.rows, data.held_out)]
        if len(jobs[0].data) > 1:
            self.passes = [[row.text for row in part.rows] for part in parts]
            self._places = {id(d): (i, list(range(len(d)))) for i, d in enumerate(parts)}
        else:
            texts = dict.fromkeys(row.text for part in parts for row in part.rows)
            numbers = {text: number for number, text in enumerate(texts)}
            self.passes = [list(texts)]
            self._places = {id(d): (0, [numbers[row.text] for row in d.rows]) for d in parts}

    def select(
        self, caches: Sequence[StateCache], rows: Dataset, labels: Sequence[int]
    ) -> StateCache:
        """The states of some rows with these labels, out of one cache per pass."""
        number, places = self._places[id(rows)]
        device = caches[number].flat.device
        return caches[number].part(
            torch.tensor(places, device=device), torch.tensor(labels, device=device)
        )


@dataclass(frozen=True, slots=True)
class _Sender:
    """A frozen sender's states: for each layer one cache per pass."""

    identity: ModelIdentity
    states: dict[int, list[StateCache]]


class _Trainer:
    """Trains the jobs of one call, which share models and states."""

    def __init__(
        self,
        jobs: Sequence[TrainingJob],
        out: Path,
        progress: OnProgress,
        config: Config,
        plots: Mapping[str, Path],
    ) -> None:
        self.jobs, self.out, self.progress = list(jobs), out, progress
        self.config, self.plots = config, plots
        self.started = time.monotonic()
        first = jobs[0]
        self.receiver = load_agent(
            first.resolved,
            first.resolved.wire.spec.receiver,
            within(progress, "loading", 0.0, LOADED),
            first.recipe.precision,
        )
        self.texts = _Texts(jobs)
        self.senders = [self._read(number) for number in range(len(first.layers))]

    def _read(self, number: int) -> _Sender:
        """Reads all texts with one sender, which is freed afterwards to make room."""
        job = self.jobs[0]
        wire, count = job.wires[number], len(job.layers)
        share = (BEGIN - LOADED) / count
        begin = LOADED + number * share
        loading = within(self.progress, "loading", begin, 0.12 * share)
        sender = load_agent(job.resolved, wire.sender, loading)
        layers = sorted({job.layers[number] for job in self.jobs})
        for layer in layers:
            trunk(sender.model, layer)  # refuse a missing layer before all texts are read
        stage = "the sender's states" if count == 1 else f"{wire.sender}: states"
        states: dict[int, list[StateCache]] = {layer: [] for layer in layers}
        passes = self.texts.passes
        for i, texts in enumerate(passes):
            found = cache_layers(
                sender,
                [texts_for(text, wire)[wire.place - 1] for text in texts],
                [0] * len(texts),
                layers=layers,
                max_tokens=job.recipe.max_text_tokens,
                progress=lambda done, i=i: self.progress(  # type: ignore[misc]
                    stage, begin + share * (0.12 + 0.88 * (i + done) / len(passes))
                ),
            )
            for layer, cache in found.items():
                states[layer].append(cache.to(self.receiver.device))
        return _Sender(sender.identity, states)

    def run(self) -> None:
        sizes = [job.recipe.batch_size for job in self.jobs]
        run_in_groups(sizes, self.receiver.device, self._train)

    def _states(self, job: TrainingJob, rows: Dataset, labels: Sequence[int]) -> JointStates:
        return JointStates(
            tuple(
                self.texts.select(sender.states[layer], rows, labels)
                for sender, layer in zip(self.senders, job.layers, strict=True)
            )
        )

    def _module(self, job: TrainingJob) -> JointBridge:
        """The untrained bridge of each sender."""
        caches = [self._states(job, data.rows, data.tasks[0].labels) for data in job.data]
        torch.manual_seed(job.recipe.seed)
        bridges = []
        for i, (sender, wire) in enumerate(zip(self.senders, job.wires, strict=True)):
            cache = evenly([states.parts[i] for states in caches])
            bridges.append(
                new_bridge(cache, self.receiver, sender.identity, wire.soft_tokens, job.recipe)
            )
        return JointBridge(bridges)

    def _tasks(self, jobs: Sequence[TrainingJob]) -> list[TrainingTask]:
        """The tasks, which are the same for all of these jobs."""
        tasks = []
        for d, data in enumerate(jobs[0].data):
            for t, one in enumerate(data.tasks):
                own = [(job, job.data[d], job.data[d].tasks[t]) for job in jobs]
                rows = [self._states(job, data.rows, task.labels) for job, data, task in own]
                held = [self._states(job, data.held_out, task.held_out) for job, data, task in own]
                self.receiver.prepare(one.task)
                logits = partial(self.receiver.logits_from_soft, task=one.task)
                tasks.append(TrainingTask(logits, rows, held))
        return tasks

    def _train(self, numbers: Sequence[int]) -> list[BridgeError]:
        """Trains jobs side by side and writes each; returns the failures."""
        jobs = [self.jobs[i] for i in numbers]
        recipes = [job.recipe for job in jobs]
        modules = [self._module(job) for job in jobs]
        identity = [
            [sender.identity.fingerprint for sender in self.senders],
            self.receiver.identity.fingerprint,
            *(job.identity() for job in jobs),
        ]
        checkpoint = Checkpoint.of(self.config, jobs[0].name, identity)
        report = TrainingReport(
            self.progress, len(jobs), recipes[0].steps, numbers[0], len(self.jobs)
        )
        objective = BridgeObjective(modules, self._tasks(jobs), recipes)
        with _fast_products():
            results = loop.train_many(
                objective, recipes, report.evaluated, checkpoint, stepped=report.stepped
            )
        failures = []
        for job, module, result in zip(jobs, modules, results, strict=True):
            if isinstance(result, BridgeError):
                which = f"{job.name}: " if len(self.jobs) > 1 else ""
                failures.append(BridgeError(f"{which}{result.message}", hint=result.hint))
            else:
                self._write(job, module, result, len(jobs))
        checkpoint.remove()
        return failures

    def _write(
        self, job: TrainingJob, module: JointBridge, trained: Trained, together: int
    ) -> None:
        seconds = time.monotonic() - self.started
        record = training_record(job, trained, seconds, self.receiver.device, together)
        senders = [sender.identity for sender in self.senders]
        write_bridges(self.out, job, module, senders, self.receiver.identity, record)
        plot = self.plots.get(job.resolved.wire.bridge)
        if plot is not None:
            draw_curve(trained.history, job.title, plot)


@contextmanager
def _fast_products() -> Iterator[None]:
    """Lets float32 matrix products use the tensor cores' TF32; weights stay float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
