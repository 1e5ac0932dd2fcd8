"""Chooses the model of each agent and the dataset: what the scenario names, or its stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentwire.config import Config
from agentwire.errors import DataError, ScenarioError
from agentwire.scenario.bridges import bridge_name, find_bridge, search_folders
from agentwire.scenario.inventory import Inventory, Unavailable
from agentwire.spec.scenario import DataChoice, ModelChoice, Scenario
from agentwire.task.datasets import TRAIN_SPLIT, require_split
from agentwire.task.samples import SAMPLE_SPLIT, sample_file, sample_note

SubstitutionKind = Literal["model", "dataset"]


@dataclass(frozen=True, slots=True)
class Substitution:
    """A model or dataset that runs in place of the one that the scenario names.

    Attributes:
        subject: the agent's name; ``task`` for a dataset.
        wanted: what the scenario names.
        used: what runs.
        reason: why, in one line.
    """

    kind: SubstitutionKind
    subject: str
    wanted: str
    used: str
    reason: str


def strict_error(first: Substitution, others: int, inventory: Inventory) -> ScenarioError:
    """The error of ``--strict``; ``others`` counts further substitutions."""
    more = f" (and {others} more)" if others else ""
    return ScenarioError(
        f"--strict: the {first.kind} {first.wanted} cannot be used here: {first.reason}{more}.",
        hint=f"{inventory.how_to_get(first.kind, first.wanted)} "
        f"Without --strict, {first.used} stands in.",
    )


# -- models ---------------------------------------------------------------------------------


def choose_models(
    scenario: Scenario,
    data: DataChoice | None,
    source: Path | None,
    inventory: Inventory,
    device: str | None,
) -> tuple[dict[str, ModelChoice], list[Substitution]]:
    """The model of each agent, and the substitutions.

    Args:
        device: device of all agents, instead of their own.

    Raises:
        ModelError, DeviceError: a model cannot run here and has no stand-in.
    """
    named: dict[str, ModelChoice] = {n: _on(device, a) for n, a in scenario.agents.items()}
    stand_ins = {
        name: _on(device, agent.stand_in)
        for name, agent in scenario.agents.items()
        if agent.stand_in is not None
    }
    reasons: dict[str, str] = {}
    for name, choice in named.items():
        problem = inventory.unavailable(choice)
        if problem is None:
            continue
        if name in stand_ins:
            reasons[name] = problem.reason
        elif not _can_be_fetched(problem, choice, inventory):
            raise problem.error(f"agents.{name} ({choice.model})")
    reasons = _keep_pairs_together(scenario, named, stand_ins, reasons, data, source, inventory)
    choices = {n: stand_ins[n] if n in reasons else named[n] for n in named}
    for name in reasons:
        problem = inventory.unavailable(choices[name])
        if problem and not _can_be_fetched(problem, choices[name], inventory):
            raise problem.error(f"agents.{name}.stand_in ({choices[name].model})")
    records = [
        Substitution("model", name, named[name].model, choices[name].model, reason)
        for name, reason in reasons.items()
    ]
    return choices, records


def _can_be_fetched(problem: Unavailable, choice: ModelChoice, inventory: Inventory) -> bool:
    """Whether a download would make the model available."""
    return problem.kind == "model" and inventory.locate(choice).fetchable


def _on(device: str | None, choice: ModelChoice) -> ModelChoice:
    if device is None:
        return choice
    return choice.model_copy(update={"device": device, "devices": []})


def _keep_pairs_together(
    scenario: Scenario,
    named: Mapping[str, ModelChoice],
    stand_ins: Mapping[str, ModelChoice],
    reasons: dict[str, str],
    data: DataChoice | None,
    source: Path | None,
    inventory: Inventory,
) -> dict[str, str]:
    """Also substitutes the partner of a substituted agent if only the two stand-ins have a bridge.

    A machine may have one of the two named models, and no bridge joins it to the other's stand-in.
    """
    if not reasons:
        return reasons
    choices = {n: stand_ins[n] if n in reasons else named[n] for n in named}
    extended = dict(reasons)
    for wire in scenario.wires:
        ends = (wire.sender, wire.receiver)
        changed = [n for n in ends if n in reasons]
        if len(changed) != 1:
            continue
        (other,) = (n for n in ends if n not in reasons)
        name = bridge_name(wire, choices, data)
        found = find_bridge(name, search_folders(source, inventory.bridge_folders(source)))
        if found is None and other in stand_ins:
            used = choices[changed[0]].model
            extended[other] = f"{used} stands in for {changed[0]}, and no bridge joins the two"
    return extended


# -- data -----------------------------------------------------------------------------------


def choose_data(
    scenario: Scenario, inventory: Inventory
) -> tuple[DataChoice | None, list[Substitution]]:
    task = scenario.task
    if task is None:
        return None, []
    own = DataChoice(dataset=task.dataset, file=task.file, path=task.path, split=task.split)
    problem = inventory.data_problem(own)
    if problem is None:
        return own, []
    if task.stand_in is None:
        raise DataError(
            f"task: the dataset {task.dataset} is not here: {problem}.",
            hint=f"{inventory.how_to_get('dataset', task.dataset)}{_sample_hint(task.dataset)}",
        )
    other = inventory.data_problem(task.stand_in)
    if other is not None:
        raise DataError(
            f"task: neither {task.dataset} ({problem}) nor its stand-in "
            f"{task.stand_in.dataset} ({other}) is here.",
            hint=inventory.how_to_get("dataset", task.stand_in.dataset),
        )
    record = Substitution("dataset", "task", task.dataset, data_name(task.stand_in), problem)
    return task.stand_in, [record]


def data_name(choice: DataChoice) -> str:
    """A dataset's name for people; a sample is marked as one."""
    if choice.split == SAMPLE_SPLIT and choice.path is None and sample_file(choice.dataset):
        return f"{choice.dataset} sample ({sample_note(choice.dataset)})"
    return choice.dataset


def _sample_hint(dataset: str) -> str:
    if not sample_file(dataset):
        return ""
    return f" `stand_in: {{dataset: {dataset}, split: {SAMPLE_SPLIT}}}` lets a few rows stand in."


def require_training_rows(data: DataChoice | None, config: Config, command: str) -> None:
    """Refuses training without rows before models are downloaded for it.

    Args:
        command: what to type again when the rows are there.

    Raises:
        DataError: the training split is missing; the hint says where to put it.
    """
    if data is None:  # the run refuses that itself
        return
    try:
        require_split(data.dataset, TRAIN_SPLIT, config=config, path=data.path)
    except DataError as error:
        again = f"Then: {'' if data.path else 'AGENTWIRE_DATA=<folder> '}{command}"
        raise DataError(error.message, hint=f"{error.hint} {again}") from None
