"""Expands a scenario's matrix into cells, one for each combination of its axes.

Each cell is a scenario with its own bridge. The bridge is named like that of a plain run, with a
suffix for every setting that differs from the scenario's own, in the order layer, M, training
settings (as in ``TrainSpec``), seed: ``…--layer8--m16--learning_rate-0.001--seed1``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from agentwire.errors import ScenarioError
from agentwire.evaluation.matrix.result import AxisValue
from agentwire.spec.scenario import (
    Agent,
    LayerChoice,
    MatrixSpec,
    ModelChoice,
    Scenario,
    TaskChoice,
    TrainSpec,
    WireSpec,
)
from agentwire.task.definitions import load_definition

MOST_CELLS = 1000
"""A larger matrix is probably a mistake."""

Point: TypeAlias = dict[str, Any]
"""Values of the bridge's axes: ``layer``, ``soft_tokens``, ``train.…``."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination.

    Attributes:
        id: unique in the matrix; also the name of the cell's folder.
        axes: this cell's value of each axis: ``wire``, ``task``, ``layer``, ``soft_tokens``,
            ``train.…``, ``seed``.
        scenario: what runs. It has no matrix, and its first wire is the measured one.
    """

    id: str
    axes: Mapping[str, AxisValue]
    scenario: Scenario

    @property
    def wire(self) -> WireSpec:
        return self.scenario.wires[0]

    @property
    def parts(self) -> list[WireSpec]:
        """The measured wire from each of its senders."""
        return [one for one in self.scenario.wires if one.set_name == self.wire.set_name]


def expand(
    scenario: Scenario, choices: Mapping[str, ModelChoice] | None = None
) -> tuple[Cell, ...]:
    """The cells of a scenario's matrix in its order; seeds vary fastest.

    ``choices`` are the models that the agents run (``Resolved.choices``; default: the named ones),
    since a stand-in reads other layers. Raises ScenarioError without a matrix, for too many cells,
    and for settings that contradict each other.
    """
    matrix, choices = scenario.matrix, choices or scenario.agents
    if matrix is None:
        raise ScenarioError(f"The scenario {scenario.name} has no `matrix:`.", hint="Add one.")
    cells: dict[str, Cell] = {}
    names = matrix.wires or [scenario.wires[0].set_name]
    wires = [next(wire for wire in scenario.wires if wire.set_name == name) for name in names]
    tasks: Sequence[TaskChoice | None] = matrix.tasks or [scenario.task]
    for wire, task in itertools.product(wires, tasks):
        # The scenario's own value of each axis.
        own: Point = {"layer": choices[wire.sender].layer, "soft_tokens": wire.soft_tokens}
        own |= {f"train.{name}": value for name, value in scenario.train.model_dump().items()}
        base = {name: own[name] for name in matrix.axes()}
        seeds = matrix.seeds or [scenario.train.seed]
        for point, seed in itertools.product(_points(matrix, base), seeds):
            cell = _cell(scenario, matrix, wire, task, base, point, seed, choices[wire.sender])
            cells.setdefault(cell.id, cell)
            if len(cells) > MOST_CELLS:
                raise ScenarioError(
                    f"The matrix of {scenario.name} has more than {MOST_CELLS} cells.",
                    hint="Remove values, or set `combine: one_at_a_time`.",
                )
    return tuple(cells.values())


def _points(matrix: MatrixSpec, base: Point) -> Iterator[Point]:
    axes = matrix.axes()
    if matrix.combine == "product":
        for combination in itertools.product(*axes.values()):
            yield dict(zip(axes, combination, strict=True))
        return
    for name, values in axes.items():
        for value in values:
            yield {**base, name: value}
    if not axes:
        yield {}


def _cell(
    scenario: Scenario,
    matrix: MatrixSpec,
    wire: WireSpec,
    task: TaskChoice | None,
    base: Point,
    point: Point,
    seed: int,
    sender: ModelChoice,
) -> Cell:
    agent = scenario.agents[wire.sender]
    stands_in = sender.model != agent.model and agent.stand_in is not None
    shown = {name: _shown(value, stands_in=stands_in) for name, value in point.items()}
    axes: dict[str, AxisValue] = {}
    if matrix.wires:
        axes["wire"] = wire.set_name
    if matrix.tasks and task is not None:
        axes["task"] = load_definition(task.dataset).name
    axes |= shown
    if matrix.seeds:
        axes["seed"] = seed
    # One reader bridge makes every M, so M is no part of its name.
    answered = task is not None and load_definition(task.dataset).kind == "answer"
    differing = [
        _suffix(name, value)
        for name, value in shown.items()
        if value != base[name] and not (answered and name == "soft_tokens")
    ]
    if seed != scenario.train.seed:
        differing.append(_suffix("seed", seed))
    settings = {
        "bridge": "--".join([wire.bridge, *differing]),
        "soft_tokens": point.get("soft_tokens", wire.soft_tokens),
    }
    parts = [one for one in scenario.wires if one.set_name == wire.set_name]
    measured = [part.model_copy(update=settings) for part in parts]
    others = [other for other in scenario.wires if other.set_name != wire.set_name]
    changed = scenario.model_copy(
        update={
            "matrix": None,
            "wires": [*measured, *others],
            "task": task,
            "agents": _with_layer(scenario.agents, wire.sender, point.get("layer")),
            "train": _with_settings(scenario, point, seed),
        }
    )
    return Cell("--".join(_suffix(*axis) for axis in axes.items()), axes, changed)


def _shown(value: Any, *, stands_in: bool) -> AxisValue:
    if isinstance(value, LayerChoice):
        return value.stand_in if stands_in else value.named
    return value  # type: ignore[no-any-return]


def _suffix(name: str, value: AxisValue) -> str:
    """An axis and its value as part of a folder's name."""
    short = name.removeprefix("train.")
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", str(value).replace("->", "-to-"))
    match short:
        case "wire" | "task":
            return text
        case "soft_tokens":
            return f"m{text}"
        case "layer" | "seed":
            return f"{short}{text}"
    return f"{short}-{text}"


def _with_layer(
    agents: Mapping[str, Agent], sender: str, layer: int | LayerChoice | None
) -> dict[str, Agent]:
    """The agents, with another layer for the sender and its stand-in."""
    if layer is None:
        return dict(agents)
    named, other = _shown(layer, stands_in=False), _shown(layer, stands_in=True)
    agent = agents[sender]
    stand_in = agent.stand_in and agent.stand_in.model_copy(update={"layer": other})
    return {**agents, sender: agent.model_copy(update={"layer": named, "stand_in": stand_in})}


def _with_settings(scenario: Scenario, point: Point, seed: int) -> TrainSpec:
    settings = {
        name.removeprefix("train."): value
        for name, value in point.items()
        if name.startswith("train.")
    }
    try:
        return TrainSpec.model_validate({**scenario.train.model_dump(), **settings, "seed": seed})
    except ValidationError as error:
        words = ", ".join(f"{name}: {value}" for name, value in settings.items())
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ScenarioError(
            f"The matrix of {scenario.name}: the settings {words} contradict each other: {reason}.",
            hint="Remove one of these values from `matrix.train`.",
        ) from None
