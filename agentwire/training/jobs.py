"""Training jobs: a bridge or a set of bridges, its senders, its receiver and its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from agentwire.bridge.architectures import ARCHITECTURES, READER
from agentwire.config import Config
from agentwire.errors import BridgeError, DataError, ScenarioError
from agentwire.scenario.bridges import set_name
from agentwire.scenario.resolve import Resolved, training_key
from agentwire.spec.scenario import DataChoice, TrainSpec, WireSpec
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import TaskDefinition, definitions, load_classification
from agentwire.training.rows import refuse_scored_rows, training_rows
from agentwire.wire.messages import TaskSpec

ROWS_AT_ONCE = {"cpu": 64, "cuda": 1024}
"""Rows of one step, over all bridges that train side by side. On a CPU more rows than fill its
caches cost memory and gain nothing. A GPU that runs out of memory takes half as many."""


@dataclass(frozen=True, slots=True)
class LabelledTask:
    """A task and its labels for the texts of a data set."""

    task: TaskSpec
    labels: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows of one data set, and what the receiver is asked about these texts."""

    rows: Dataset
    held_out: Dataset  # chooses the step
    tasks: tuple[LabelledTask, ...]  # one task, or all tasks of a series


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A bridge to train, or a set of bridges whose soft tokens one receiver reads together."""

    resolved: Resolved  # where several scenarios share a bridge, the first of them
    name: str  # of the bridge or of the set
    layers: tuple[int, ...]  # of each sender
    data: tuple[TrainingData, ...]  # several if the bridge serves several tasks

    @property
    def recipe(self) -> TrainSpec:
        return self.resolved.scenario.train

    @property
    def wires(self) -> list[WireSpec]:
        """The wire from each sender, in the order in which the receiver reads soft tokens."""
        return [part.spec for part in self.resolved.parts]

    @property
    def is_set(self) -> bool:
        return bool(self.resolved.wire.spec.joint)

    @property
    def bridges(self) -> list[str]:
        """The folder name of each sender's bridge."""
        if not self.is_set:
            return [self.name]
        return [f"{self.name}.{place}" for place in range(1, len(self.layers) + 1)]

    @property
    def title(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return f"{self.name}, layer {layers}, M = {self.wires[0].soft_tokens}"

    def identity(self) -> list[object]:
        """Everything in the job that the training depends on, apart from the models."""
        return [
            self.name,
            self.layers,
            [(wire.soft_tokens, wire.reads) for wire in self.wires],
            [
                (data.rows.provenance["rows_sha256"], [one.task.task_id for one in data.tasks])
                for data in self.data
            ],
            self.recipe.model_dump(),
        ]


def training_jobs(resolved: Sequence[Resolved], config: Config) -> list[TrainingJob]:
    """The jobs that train the bridges of these scenarios; raises as ``train_scenarios``.

    Scenarios of several tasks that name the same bridge are one job; other scenarios are one each.
    """
    # Rows by the settings that choose them, so that jobs share them.
    known: dict[tuple[str, int, int, int], tuple[Dataset, Dataset]] = {}
    if len(resolved) > 1 and len({one.wire.bridge for one in resolved}) == 1:
        if any(_apart_from_task(one) != _apart_from_task(resolved[0]) for one in resolved):
            raise ValueError("the scenarios differ in more than their task")
        return [_job(resolved, config, known)]
    if len({training_key(one) for one in resolved}) > 1:
        raise ValueError("the scenarios differ in more than settings of one bridge")
    return [_job([one], config, known) for one in resolved]


def _apart_from_task(one: Resolved) -> tuple[object, ...]:
    wire = one.wire.spec
    return wire, one.scenario.train, one.choices[wire.sender], one.choices[wire.receiver]


def _job(
    scenarios: Sequence[Resolved],
    config: Config,
    known: dict[tuple[str, int, int, int], tuple[Dataset, Dataset]],
) -> TrainingJob:
    first = scenarios[0]
    wire, recipe = first.wire.spec, first.scenario.train
    choices = [_trainable_data(one) for one in scenarios]
    layers = tuple(_layer(first, part.spec.sender) for part in first.parts)
    name = set_name(wire, first.choices, choices[0]) if wire.joint else first.wire.bridge
    data = []
    for choice in choices:
        definition = load_classification(choice.dataset)
        if definition.series is not None and (wire.joint or len(scenarios) > 1):
            raise ScenarioError(
                f"{choice.dataset} belongs to the series {definition.series}, whose tasks share "
                "one bridge of one sender.",
                hint="Give the wire one sender and no `bridge:`, or choose another task.",
            )
        key = (choice.model_dump_json(), recipe.held_out, recipe.max_rows, recipe.seed)
        if key not in known:
            known[key] = training_rows(choice, recipe, config)
        data.append(training_data(choice, definition, *known[key], config))
    return TrainingJob(first, name, layers, tuple(data))


def _trainable_data(resolved: Resolved) -> DataChoice:
    if resolved.data is None:
        raise ScenarioError(
            "the scenario has no `task:`, so there is nothing to train for.",
            hint="Add a task with a dataset.",
        )
    if any(choice.weights == "random" for choice in resolved.choices.values()):
        raise ScenarioError(
            "a bridge between models with random weights cannot learn anything.",
            hint="Set `weights: pretrained`; `python bench/train_step.py` times the steps.",
        )
    architecture = resolved.scenario.train.architecture
    ARCHITECTURES.get(architecture)  # refuse an unknown one now
    if architecture != READER and not all(part.spec.soft_tokens for part in resolved.parts):
        raise ScenarioError(
            f"`soft_tokens: auto` is for reader bridges, and this one is a {architecture}.",
            hint="Set the number of soft tokens, or `architecture: reader` under `train`.",
        )
    refuse_scored_rows(resolved.data)
    return resolved.data


def _layer(resolved: Resolved, sender: str) -> int:
    layer = resolved.choices[sender].layer
    if layer is None:
        raise ScenarioError(
            f"the agent {sender} sends but has no `layer`.",
            hint="Set the layer whose hidden states the bridge reads, e.g. `layer: 16`.",
        )
    return layer


def training_data(
    choice: DataChoice,
    definition: TaskDefinition,
    rows: Dataset,
    held_out: Dataset,
    config: Config,
) -> TrainingData:
    """The rows of a data set with the labels of its own task, or of all tasks of its series.

    Rows from a path stand alone, because the path does not say where the rows of the other tasks
    are. Raises DataError if another task of the series lacks one of these texts.
    """
    parts = (rows, held_out)
    if definition.series is None or choice.path is not None:
        labels = (tuple(row.label for row in part.rows) for part in parts)
        return TrainingData(rows, held_out, (LabelledTask(definition.spec(), *labels),))
    tasks = []
    for name, task in definitions().items():
        if task.series == definition.series:
            split = load_rows(name, rows.split, config=config)
            known = {row.text: row.label for row in split.rows}
            tasks.append(LabelledTask(task.spec(), *(_labels(part, known, name) for part in parts)))
    return TrainingData(rows, held_out, tuple(tasks))


def _labels(rows: Dataset, known: dict[str, int], task: str) -> tuple[int, ...]:
    missing = next((row.text for row in rows.rows if row.text not in known), None)
    if missing is not None:
        raise DataError(
            f"{task} has no row for the text {missing[:40]!r} of {rows.name}.",
            hint="Tasks of one series must have the same texts.",
        )
    return tuple(known[row.text] for row in rows.rows)


def side_by_side(batch_sizes: Sequence[int], most: int) -> list[list[int]]:
    """Splits trainings, in order, into groups of at most ``most`` rows per step, or of one."""
    groups: list[list[int]] = []
    room = 0
    for number, rows in enumerate(batch_sizes):
        if rows > room or not groups:
            groups.append([])
            room = most
        groups[-1].append(number)
        room -= rows
    return groups


def run_in_groups(
    batch_sizes: Sequence[int],
    device: torch.device,
    train: Callable[[Sequence[int]], Sequence[BridgeError]],
) -> None:
    """Trains all jobs, as many side by side as fit; half as many where memory runs out.

    ``train`` trains and writes the jobs with these numbers. Raises the first of its failures last.
    """
    groups = side_by_side(batch_sizes, ROWS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"])
    failures: list[BridgeError] = []
    while groups:
        numbers = groups.pop(0)
        try:
            failures += train(numbers)
        except torch.OutOfMemoryError:
            if len(numbers) == 1:
                raise
            half = len(numbers) // 2
            groups[:0] = [numbers[:half], numbers[half:]]
    if failures:
        raise failures[0]
