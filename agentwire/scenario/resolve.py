"""What a scenario means on this machine: which models, devices, data and bridges really run.

``resolve`` downloads nothing and loads no model. Each agent runs the model that the scenario
names if its weights are here and its device exists, else the model that may stand in for it; the
same for the dataset. Every substitution is recorded with its reason; ``strict`` refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agentwire.agent.spec import AgentSpec, OutgoingBridge
from agentwire.bridge.card import BridgeCard, read_card
from agentwire.errors import BridgeError, DataError, ScenarioError
from agentwire.scenario.bridging import (
    bridge_name,
    check_card,
    check_data,
    check_weights,
    fake_bridge,
    find_bridge,
    missing_bridge,
    search_folders,
)
from agentwire.scenario.inventory import Inventory, Problem, Site
from agentwire.scenario.schema import DataChoice, ModelChoice, Scenario, WireSpec

SubstitutionKind = Literal["model", "dataset"]


@dataclass(frozen=True, slots=True)
class Substitution:
    """Something that runs in the place of what the scenario names.

    Attributes:
        kind: ``model`` or ``dataset``.
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


@dataclass(frozen=True, slots=True)
class ResolvedWire:
    """A wire, and the bridge that it really uses.

    Attributes:
        spec: as the scenario says.
        bridge: name of the bridge folder, ``auto`` replaced.
        folder: where it is; None: not here (allowed only where bridges are not required).
        card: its card.
    """

    spec: WireSpec
    bridge: str
    folder: Path | None
    card: BridgeCard | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A scenario, and everything that was decided about it for this machine.

    Attributes:
        scenario: as written.
        source: the scenario file; None where it was built in Python.
        agents: what each process is born with, by agent name.
        choices: the model choice behind each of them.
        sites: where each model's weights are, or how they come.
        wires: by wire name.
        data: the rows that are scored; None without a task.
        substitutions: everything that stands in for something else.
    """

    scenario: Scenario
    source: Path | None
    agents: Mapping[str, AgentSpec]
    choices: Mapping[str, ModelChoice]
    sites: Mapping[str, Site]
    wires: Mapping[str, ResolvedWire]
    data: DataChoice | None
    substitutions: tuple[Substitution, ...]

    @property
    def wire(self) -> ResolvedWire:
        """The first wire: the one that a task runs over."""
        return next(iter(self.wires.values()))

    @property
    def on_cpu(self) -> bool:
        """Whether any agent computes on the CPU."""
        return any(agent.device == "cpu" for agent in self.agents.values())

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, as ``runs/<run>/config.json`` holds it."""
        return {
            "scenario": self.scenario.model_dump(mode="json", by_alias=True),
            "source": str(self.source) if self.source else None,
            "agents": {name: spec.model_dump(mode="json") for name, spec in self.agents.items()},
            "layers": {name: choice.layer for name, choice in self.choices.items()},
            "wires": {
                name: {
                    "bridge": wire.bridge,
                    "folder": str(wire.folder) if wire.folder else None,
                    "weights_sha256": wire.card.weights_sha256 if wire.card else None,
                }
                for name, wire in self.wires.items()
            },
            "data": self.data.model_dump(mode="json") if self.data else None,
            "substitutions": [asdict(s) for s in self.substitutions],
        }


def resolve(
    scenario: Scenario,
    *,
    source: Path | None = None,
    inventory: Inventory | None = None,
    strict: bool = False,
    device: str | None = None,
    require_bridges: bool | None = None,
) -> Resolved:
    """Decides what runs here.

    Args:
        scenario: the experiment.
        source: its file; bridges are looked for beside it first.
        inventory: what this machine has; default: this machine.
        strict: refuse every substitution.
        device: put every agent on this device, whatever the scenario says.
        require_bridges: a wire without its bridge is an error. Default: if there is a task, so
            that a run never measures text relay under the name of a bridge.

    Raises:
        ScenarioError: ``strict`` and something would have to stand in.
        ModelError, DeviceError, DataError: it cannot run here, and nothing may stand in.
        BridgeError: the bridge is missing, or its card is for other models, layer or M.
    """
    inventory = inventory or Inventory.here()
    need_bridges = scenario.task is not None if require_bridges is None else require_bridges
    named: dict[str, ModelChoice] = {}
    for name, agent in scenario.agents.items():
        named[name] = _on(device, agent)
    stand_ins: dict[str, ModelChoice] = {
        name: _on(device, agent.stand_in)
        for name, agent in scenario.agents.items()
        if agent.stand_in is not None
    }
    problems = {name: inventory.problem(choice) for name, choice in named.items()}
    data, data_records = _choose_data(scenario, inventory)
    reasons = {name: problem.reason for name, problem in problems.items() if problem}
    for name, problem in problems.items():
        if problem and name not in stand_ins:
            if problem.kind == "model" and inventory.site(named[name]).fetchable:
                del reasons[name]  # nothing else may run: ``fetch`` gets it from the hub
                continue
            raise problem.error(f"agents.{name} ({named[name].model})")
    reasons = _keep_pairs_together(scenario, named, stand_ins, reasons, data, source, inventory)
    choices = {n: stand_ins[n] if n in reasons else named[n] for n in named}
    for name in reasons:
        problem = inventory.problem(choices[name])
        if problem and not (problem.kind == "model" and inventory.site(choices[name]).fetchable):
            raise problem.error(f"agents.{name}.stand_in ({choices[name].model})")
    records = [
        Substitution("model", name, named[name].model, choices[name].model, reason)
        for name, reason in reasons.items()
    ] + data_records
    if strict and records:
        raise _strictly(records, problems, inventory)
    devices = _place(choices, inventory)
    wires = _join(scenario, choices, data, source, inventory, required=need_bridges)
    sites = {name: inventory.site(choice) for name, choice in choices.items()}
    return Resolved(
        scenario=scenario,
        source=source,
        agents=_specs(scenario, choices, sites, devices, wires, inventory.cpus()),
        choices=choices,
        sites=sites,
        wires=wires,
        data=data,
        substitutions=tuple(records),
    )


def _strictly(
    records: Sequence[Substitution],
    problems: Mapping[str, Problem | None],
    inventory: Inventory,
) -> ScenarioError:
    """The error of ``strict`` for what would have to stand in."""
    first = records[0]
    more = f" (and {len(records) - 1} more)" if len(records) > 1 else ""
    problem = problems.get(first.subject)
    step = problem.hint if problem else inventory.how_to_get(first.kind, first.wanted)
    return ScenarioError(
        f"--strict: the {first.kind} {first.wanted} cannot be used here: {first.reason}{more}.",
        hint=f"{step} Without --strict, {first.used} stands in.",
    )


# -- models and devices ---------------------------------------------------------------------


def _on(device: str | None, choice: ModelChoice) -> ModelChoice:
    return choice if device is None else choice.model_copy(update={"device": device})


def _keep_pairs_together(
    scenario: Scenario,
    named: Mapping[str, ModelChoice],
    stand_ins: Mapping[str, ModelChoice],
    reasons: dict[str, str],
    data: DataChoice | None,
    source: Path | None,
    inventory: Inventory,
) -> dict[str, str]:
    """Lets the partner of a substituted agent stand in too, where only that pair has a bridge.

    A machine may hold one of the two named models: no bridge joins it to the other's stand-in.
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


def _place(choices: Mapping[str, ModelChoice], inventory: Inventory) -> dict[str, str]:
    """The device of each agent: ``auto`` spreads agents over the GPUs, else takes the CPU."""
    taken = {c.device for c in choices.values() if c.device.startswith("cuda:")}
    devices: dict[str, str] = {}
    gpus: list[str] = []
    if any(c.device == "auto" and c.backend != "fake" for c in choices.values()):
        gpus = [f"cuda:{i}" for i in range(inventory.gpus())]
        gpus = [g for g in gpus if g not in taken] or gpus
    turn = 0
    for name, choice in choices.items():
        if choice.device != "auto":
            devices[name] = choice.device
        elif gpus and choice.backend != "fake":
            devices[name] = gpus[turn % len(gpus)]
            turn += 1
        else:
            devices[name] = "cpu"
    return devices


def _specs(
    scenario: Scenario,
    choices: Mapping[str, ModelChoice],
    sites: Mapping[str, Site],
    devices: Mapping[str, str],
    wires: Mapping[str, ResolvedWire],
    cpus: int,
) -> dict[str, AgentSpec]:
    share = max(1, cpus // len(choices))
    specs: dict[str, AgentSpec] = {}
    for name, choice in choices.items():
        outgoing = tuple(
            OutgoingBridge(
                wire=wire,
                receiver=r.spec.receiver,
                folder=str(r.folder) if r.folder else None,
            )
            for wire, r in wires.items()
            if r.spec.sender == name
        )
        folder = sites[name].folder
        specs[name] = AgentSpec(
            name=name,
            backend=choice.backend,
            model=choice.model,
            folder=str(folder) if folder else None,
            weights=choice.weights,
            dtype=choice.dtype,
            device=devices[name],
            threads=choice.threads or share,
            max_batch=scenario.batch_size,
            bridges=outgoing,
            incoming=tuple(w for w, r in wires.items() if r.spec.receiver == name),
            fallback={w: r.spec.fallback for w, r in wires.items() if r.spec.sender == name},
        )
    return specs


# -- data -----------------------------------------------------------------------------------


def _choose_data(
    scenario: Scenario, inventory: Inventory
) -> tuple[DataChoice | None, list[Substitution]]:
    task = scenario.task
    if task is None:
        return None, []
    own = DataChoice(dataset=task.dataset, path=task.path, split=task.split)
    problem = inventory.data_problem(own)
    if problem is None:
        return own, []
    if task.stand_in is None:
        raise DataError(
            f"task: the dataset {task.dataset} is not here: {problem}.",
            hint=inventory.how_to_get("dataset", task.dataset),
        )
    other = inventory.data_problem(task.stand_in)
    if other is not None:
        raise DataError(
            f"task: neither {task.dataset} ({problem}) nor its stand-in "
            f"{task.stand_in.dataset} ({other}) can be had here.",
            hint=inventory.how_to_get("dataset", task.stand_in.dataset),
        )
    record = Substitution("dataset", "task", task.dataset, task.stand_in.dataset, problem)
    return task.stand_in, [record]


# -- bridges --------------------------------------------------------------------------------


def _join(
    scenario: Scenario,
    choices: Mapping[str, ModelChoice],
    data: DataChoice | None,
    source: Path | None,
    inventory: Inventory,
    *,
    required: bool,
) -> dict[str, ResolvedWire]:
    """The bridge of each wire. Only a required one must be there and fit."""
    folders = search_folders(source, inventory.bridge_folders(source))
    wires: dict[str, ResolvedWire] = {}
    for wire in scenario.wires:
        if fake := fake_bridge(wire, choices):
            wires[wire.name] = ResolvedWire(wire, fake, Path(fake), None)
            continue
        name = bridge_name(wire, choices, data)
        folder = find_bridge(name, folders)
        # Without a task nobody measures the bridge: an unnamed one may be missing where the
        # wire can relay text instead. What is asked for by name must be there.
        asked_for = scenario.task is None and (wire.bridge != "auto" or wire.fallback == "error")
        if folder is None:
            if required or asked_for:
                raise missing_bridge(wire, name, source)
            wires[wire.name] = ResolvedWire(wire, name, None, None)
            continue
        try:
            card = read_card(folder)
            fingerprints = {n: inventory.fingerprint(c) for n, c in choices.items()}
            check_card(card, wire, choices, fingerprints)
            check_data(card, wire, data)
            check_weights(folder, card)
        except BridgeError:
            if required or asked_for:
                raise
            wires[wire.name] = ResolvedWire(wire, name, None, None)
            continue
        wires[wire.name] = ResolvedWire(wire, name, folder, card)
    return wires


# -- getting what is missing ----------------------------------------------------------------

FetchProgress = Callable[[str, str, float], None]
"""(what, stage, fraction 0..1), called while models are fetched and converted."""


def fetch(
    resolved: Resolved,
    *,
    inventory: Inventory | None = None,
    progress: FetchProgress | None = None,
) -> Resolved:
    """Downloads and converts the models that the agents need and that are not here yet.

    Raises:
        DownloadError, CacheError, ModelError: a model cannot be had.
    """
    inventory = inventory or Inventory.here()
    agents: dict[str, AgentSpec] = dict(resolved.agents)
    sites: dict[str, Site] = dict(resolved.sites)
    for name, site in resolved.sites.items():
        if site.needed and site.folder is None:
            model = resolved.choices[name].model
            report = None
            if progress is not None:
                report = _named(progress, model)
            folder = inventory.fetch(model, report)
            sites[name] = replace(site, folder=folder)
            agents[name] = agents[name].model_copy(update={"folder": str(folder)})
    return replace(resolved, agents=agents, sites=sites)


def _named(progress: FetchProgress, what: str) -> Callable[[str, float], None]:
    return lambda stage, fraction: progress(what, stage, fraction)
