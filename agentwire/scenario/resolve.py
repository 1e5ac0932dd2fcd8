"""Decides which models, devices, data and bridges a scenario uses on this machine.

Each agent runs the model that the scenario names if its weights are here and its device exists, and
otherwise its stand-in; the same holds for the dataset. Every substitution is recorded with its
reason. ``resolve`` downloads nothing and loads no model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from agentwire.bridge.card import ANY_PROMPT, BridgeCard, read_card
from agentwire.errors import BridgeError
from agentwire.scenario.bridges import (
    bridge_name,
    check_card,
    check_data,
    check_set,
    check_weights,
    find_bridge,
    missing_bridge,
    random_bridge,
    search_folders,
    synthetic_bridge,
)
from agentwire.scenario.choose import Substitution, choose_data, choose_models, strict_error
from agentwire.scenario.inventory import Inventory, WeightsLocation
from agentwire.spec.agent import AgentSpec, JointBridges, OutgoingBridge
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import DataChoice, ModelChoice, Scenario, WireSpec


@dataclass(frozen=True, slots=True)
class ResolvedWire:
    """A wire and the bridge that it uses.

    Attributes:
        spec: the wire in the scenario.
        bridge: name of the bridge folder; ``auto`` is replaced.
        folder: the folder; None if it is not here, which is allowed if bridges are not required.
    """

    spec: WireSpec
    bridge: str
    folder: Path | None
    card: BridgeCard | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A scenario and everything that was decided about it for this machine.

    Attributes:
        scenario: as written.
        source: the scenario file; None if the scenario was built in Python.
        agents: the spec of each agent.
        choices: the model of each agent.
        weights: where each agent's weights are.
        wires: by wire name.
        data: the rows that are scored; None without a task.
        substitutions: everything that stands in for something else.
        devices: the device of each replica, for agents with replicas.
    """

    scenario: Scenario
    source: Path | None
    agents: Mapping[str, AgentSpec]
    choices: Mapping[str, ModelChoice]
    weights: Mapping[str, WeightsLocation]
    wires: Mapping[str, ResolvedWire]
    data: DataChoice | None
    substitutions: tuple[Substitution, ...]
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def most_replicas(self) -> int:
        """The largest number of replicas; it scales the messages in flight."""
        return max(map(len, self.devices.values()), default=1)

    @property
    def wire(self) -> ResolvedWire:
        """The first wire, which a task runs over."""
        return next(iter(self.wires.values()))

    @property
    def parts(self) -> tuple[ResolvedWire, ...]:
        """That wire from each of its senders, in the receiver's reading order."""
        spec = self.wire.spec
        senders = spec.joint or (spec.sender,)
        return tuple(self.wires[f"{sender}->{spec.receiver}"] for sender in senders)

    @property
    def on_cpu(self) -> bool:
        """Whether any agent computes on the CPU."""
        devices = [agent.device for agent in self.agents.values()]
        return "cpu" in itertools.chain(devices, *self.devices.values())

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, as ``runs/<run>/config.json`` holds it."""
        return {
            "scenario": json.loads(self.scenario.model_dump_json(by_alias=True)),
            "source": str(self.source) if self.source else None,
            "agents": {name: spec.model_dump(mode="json") for name, spec in self.agents.items()},
            "devices": {name: list(devices) for name, devices in self.devices.items()},
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


def training_key(resolved: Resolved) -> str:
    """JSON that is equal for scenarios whose bridges can be trained side by side.

    They read the same texts with the same models and evaluate at the same steps. Layer, M, seed
    and all other training settings may differ.
    """
    wire = resolved.wire.spec
    ends = (*(part.spec.sender for part in resolved.parts), wire.receiver)
    train = resolved.scenario.train
    return json.dumps(
        [
            [resolved.choices[end].model_dump(exclude={"layer"}) for end in ends],
            [resolved.agents[end].device for end in ends],
            resolved.data.model_dump() if resolved.data else None,
            [train.steps, train.evaluate_every, train.held_out],
            [train.max_text_tokens, train.precision],
            [wire.joint, wire.reads],
        ],
        sort_keys=True,
    )


def resolve(
    scenario: Scenario,
    *,
    source: Path | None = None,
    inventory: Inventory | None = None,
    strict: bool = False,
    device: str | None = None,
    require_bridges: bool | Collection[str] | None = None,
) -> Resolved:
    """Decides what runs here.

    Args:
        source: the scenario's file; bridges beside it are found first.
        inventory: default: this machine.
        strict: refuse every substitution.
        device: device of all agents, instead of the scenario's.
        require_bridges: whether a wire without its bridge is an error, or the names of the wires
            for which it is. By default it is one if there is a task: a run must not measure text
            relay under the name of a bridge.

    Raises:
        ScenarioError: ``strict`` is set and something would be substituted.
        ModelError, DeviceError, DataError: something cannot run here and has no stand-in.
        BridgeError: the bridge is missing, or its card is for other models, layer or M.
    """
    inventory = inventory or Inventory.here()
    need_bridges = scenario.task is not None if require_bridges is None else require_bridges
    if isinstance(need_bridges, bool):
        need_bridges = {wire.name for wire in scenario.wires} if need_bridges else ()
    data, data_records = choose_data(scenario, inventory)
    choices, model_records = choose_models(scenario, data, source, inventory, device)
    records = (*model_records, *data_records)
    if strict and records:
        raise strict_error(records[0], len(records) - 1, inventory)
    devices = _place(scenario, choices, inventory)
    wires = _join(scenario, choices, data, source, inventory, required=need_bridges)
    weights = {name: inventory.locate(choice) for name, choice in choices.items()}
    return Resolved(
        scenario=scenario,
        source=source,
        agents=_share_cpus(
            _specs(scenario, choices, weights, devices, wires, inventory.cpus()),
            choices,
            devices,
            inventory.cpus(),
        ),
        choices=choices,
        weights=weights,
        wires=wires,
        data=data,
        substitutions=records,
        devices={name: where for name, where in devices.items() if len(where) > 1},
    )


@dataclass(frozen=True, slots=True)
class Resolver:
    """``resolve`` with the options of a command.

    Attributes:
        source: the scenario file.
        strict: refuse every substitution.
        device: device of all agents.
    """

    inventory: Inventory
    source: Path | None = None
    strict: bool = False
    device: str | None = None

    def resolve(self, scenario: Scenario, *, bridges: bool | Collection[str]) -> Resolved:
        """``bridges``: whether wires must have their bridge, or the names of those that must."""
        return resolve(
            scenario,
            source=self.source,
            inventory=self.inventory,
            strict=self.strict,
            device=self.device,
            require_bridges=bridges,
        )


# -- devices and processes ---------------------------------------------------------------------


Devices: TypeAlias = Mapping[str, tuple[str, ...]]
"""Agent -> the device of each of its processes."""


def _place(scenario: Scenario, choices: Mapping[str, ModelChoice], inventory: Inventory) -> Devices:
    """The device of each process; ``auto`` spreads processes over the GPUs, or takes the CPU."""
    wanted = {
        name: choice.devices or [choice.device] * scenario.agents[name].processes
        for name, choice in choices.items()
    }
    taken = {device for devices in wanted.values() for device in devices if _is_gpu(device)}
    gpus: list[str] = []
    if any("auto" in wanted[n] and BACKENDS.get(c.backend).uses_gpu for n, c in choices.items()):
        gpus = [f"cuda:{i}" for i in range(inventory.gpus())]
        gpus = [g for g in gpus if g not in taken] or gpus
    turns = itertools.cycle(gpus)
    return {
        name: tuple(
            (next(turns, "cpu") if BACKENDS.get(choices[name].backend).uses_gpu else "cpu")
            if device == "auto"
            else device
            for device in devices
        )
        for name, devices in wanted.items()
    }


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda:")


def _specs(
    scenario: Scenario,
    choices: Mapping[str, ModelChoice],
    weights: Mapping[str, WeightsLocation],
    devices: Devices,
    wires: Mapping[str, ResolvedWire],
    cpus: int,
) -> dict[str, AgentSpec]:
    share = max(1, cpus // sum(map(len, devices.values())))
    specs: dict[str, AgentSpec] = {}
    for name, choice in choices.items():
        outgoing = tuple(
            OutgoingBridge(
                wire=wire,
                receiver=r.spec.receiver,
                folder=str(r.folder) if r.folder else None,
                long_text=r.spec.long_text,
                soft_tokens=r.spec.soft_tokens,
            )
            for wire, r in wires.items()
            if r.spec.sender == name
        )
        folder = weights[name].folder
        specs[name] = AgentSpec(
            name=name,
            backend=choice.backend,
            model=choice.model,
            folder=str(folder) if folder else None,
            weights=choice.weights,
            dtype=choice.dtype,
            device=devices[name][0],
            threads=choice.threads or share,
            engine=choice.engine,
            graphs=choice.graphs,
            max_batch=scenario.batch_size,
            max_wait_ms=choice.max_wait_ms,
            rehearse=choice.rehearse,
            place=choice.place,
            bridges=outgoing,
            incoming=tuple(w for w, r in wires.items() if r.spec.receiver == name),
            readers=tuple(
                sorted(
                    {
                        str(r.folder)
                        for r in wires.values()
                        if r.spec.receiver == name and r.card and r.card.identity().receiver_half
                    }
                )
            ),
            joint=joint_bridges([r for r in wires.values() if r.spec.receiver == name], choices),
            soft_tokens=tuple(
                sorted(
                    {
                        r.spec.soft_tokens * max(1, len(r.spec.joint))
                        for r in wires.values()
                        if r.spec.receiver == name and not (r.card and r.card.reader)
                    }
                )
            ),
            fallback={w: r.spec.fallback for w, r in wires.items() if r.spec.sender == name},
        )
    return specs


def _share_cpus(
    specs: dict[str, AgentSpec],
    choices: Mapping[str, ModelChoice],
    devices: Devices,
    cpus: int,
) -> dict[str, AgentSpec]:
    """Lets agents on the CPU use each other's idle threads, unless a file sets their number."""
    cpu_shares = {
        name: spec.threads or 1
        for name, spec in specs.items()
        if {*devices[name]} == {"cpu"}
        and BACKENDS.get(spec.backend).shares_cpu
        and choices[name].threads is None
    }
    processes = {name: len(devices[name]) for name in cpu_shares}
    # With more agents than cores they share cores already.
    threads = sum(count * processes[name] for name, count in cpu_shares.items())
    if sum(processes.values()) < 2 or threads > cpus:
        return specs
    return {
        name: spec.model_copy(update={"cpu_shares": cpu_shares}) if name in cpu_shares else spec
        for name, spec in specs.items()
    }


# -- bridges --------------------------------------------------------------------------------


def _join(
    scenario: Scenario,
    choices: Mapping[str, ModelChoice],
    data: DataChoice | None,
    source: Path | None,
    inventory: Inventory,
    *,
    required: Collection[str],
) -> dict[str, ResolvedWire]:
    """The bridge of each wire. Only required bridges must be here and fit."""
    folders = search_folders(source, inventory.bridge_folders(source))
    wires: dict[str, ResolvedWire] = {}
    for wire in scenario.wires:
        if made := synthetic_bridge(wire, choices) or random_bridge(wire, choices):
            wires[wire.name] = ResolvedWire(wire, made, Path(made), None)
            continue
        name = bridge_name(wire, choices, data)
        folder = find_bridge(name, folders)
        # Without a task nothing measures the bridge, and the wire can relay text instead. A bridge
        # that the scenario names must be here all the same.
        named = scenario.task is None and (not wire.auto_bridge or wire.fallback == "error")
        if folder is None:
            if wire.name in required or named:
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
            if wire.name in required or named:
                raise
            wires[wire.name] = ResolvedWire(wire, name, None, None)
            continue
        wires[wire.name] = ResolvedWire(wire, name, folder, card)
    for group in _sets(wires.values()):
        cards = [wire.card for wire in group if wire.card is not None]
        try:
            check_set([wire.spec for wire in group], cards)
        except BridgeError:
            if any(wire.spec.name in required for wire in group):
                raise
            wires |= {w.spec.name: ResolvedWire(w.spec, w.bridge, None, None) for w in group}
    return wires


def _sets(wires: Iterable[ResolvedWire]) -> list[list[ResolvedWire]]:
    """The joint wires of each receiver, in reading order."""
    groups: dict[str, list[ResolvedWire]] = {}
    for wire in sorted((w for w in wires if w.spec.joint), key=lambda w: w.spec.place):
        groups.setdefault(wire.spec.set_name, []).append(wire)
    return list(groups.values())


def joint_bridges(
    wires: Iterable[ResolvedWire], choices: Mapping[str, ModelChoice]
) -> tuple[JointBridges, ...]:
    """The sets of bridges that a receiver reads together; incomplete sets are left out."""
    found: list[JointBridges] = []
    for group in _sets(wires):
        cards = [wire.card for wire in group]
        name = group[0].spec.set_name
        if all(card is not None and card.joint is not None for card in cards):
            joints = [card.joint for card in cards if card is not None and card.joint is not None]
            found.append(
                JointBridges(name=name, bridges=joints[0].parts, prompts=joints[0].prompts)
            )
            continue
        senders = [choices[wire.spec.sender] for wire in group]
        made = [BACKENDS.get(sender.backend).bridges for sender in senders]
        bridges = tuple(
            own.fingerprint(sender.model, wire.bridge)
            for own, sender, wire in zip(made, senders, group, strict=True)
            if own is not None
        )
        if len(bridges) == len(group):
            found.append(JointBridges(name=name, bridges=bridges, prompts=(ANY_PROMPT,)))
    return tuple(found)
