"""The deployment of a runtime: agents, wires and defaults, from a scenario or built in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentwire.bridge.card import CARD_FILE, BridgeCard, CardReader, read_card
from agentwire.errors import ScenarioError
from agentwire.scenario.resolve import Resolved
from agentwire.spec.agent import AgentSpec
from agentwire.spec.registry import suggestion
from agentwire.spec.routes import Routes, direct_routes_of, processes_of, routes_of
from agentwire.spec.scenario import WireSpec
from agentwire.task.definitions import load_definition
from agentwire.wire.messages import TaskSpec, direct_wire


@dataclass(frozen=True, slots=True)
class Deployment:
    """The agents and wires that a runtime starts, and the defaults of its calls.

    Attributes:
        agents: by name.
        wires: by name.
        task: default task of a call; without one, each call must give a prompt.
        batch_size: rows of one message of ``send_many``.
        in_flight: messages of ``send_many`` that may be outstanding.
        deadline_s: default deadline of a request, in seconds.
        bridges: wire name -> name of its bridge, or None.
        cards: wire name -> card of its bridge, if it has one.
        devices: agent -> the device of each of its replicas. An agent that is missing here has one
            process, on the device of its spec.
    """

    agents: Mapping[str, AgentSpec]
    wires: Mapping[str, WireSpec]
    task: TaskSpec | None = None
    batch_size: int = 16
    in_flight: int = 2
    deadline_s: float = 300.0
    bridges: Mapping[str, str | None] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cards: Mapping[str, BridgeCard] = field(default_factory=dict)

    @classmethod
    def of(cls, resolved: Resolved) -> Deployment:
        """The deployment of a resolved scenario."""
        scenario, data = resolved.scenario, resolved.data
        task = load_definition(data.dataset).spec() if data is not None else None
        return cls(
            agents={n: a.model_copy(update={"task": task}) for n, a in resolved.agents.items()},
            wires={name: wire.spec for name, wire in resolved.wires.items()},
            task=task,
            batch_size=scenario.batch_size,
            in_flight=scenario.in_flight * resolved.most_replicas,
            deadline_s=scenario.deadline_s,
            bridges={n: w.bridge if w.folder else None for n, w in resolved.wires.items()},
            devices=resolved.devices,
            cards={n: w.card for n, w in resolved.wires.items() if w.card is not None},
        )

    @classmethod
    def of_specs(
        cls,
        agents: Mapping[str, AgentSpec],
        wires: Sequence[WireSpec],
        *,
        task: TaskSpec | None = None,
        batch_size: int = 16,
        in_flight: int = 2,
        replicas: Mapping[str, int] | None = None,
    ) -> Deployment:
        """A deployment built in Python; fills ``incoming`` and ``fallback`` of the specs.

        An agent's ``bridges`` name the bridge folder of each wire; other wires have no bridge.
        ``replicas`` gives the number of an agent's processes, if it is not one.
        """
        by_name = {wire.name: wire for wire in wires}
        bridges = {b.wire: b.folder for spec in agents.values() for b in spec.bridges}
        folders = {wire: Path(folder) for wire, folder in bridges.items() if folder}
        cards = {w: read_card(f) for w, f in folders.items() if (f / CARD_FILE).is_file()}
        filled: dict[str, AgentSpec] = {}
        for name, spec in agents.items():
            incoming = tuple(w.name for w in wires if w.receiver == name)
            fallback = {w.name: w.fallback for w in wires if w.sender == name}
            halves = {w for w in incoming if w in cards and cards[w].identity().receiver_half}
            readers = (*spec.readers, *sorted({str(folders[w]) for w in halves}))
            filled[name] = spec.model_copy(
                update={"incoming": incoming, "fallback": fallback, "readers": readers}
            )
        devices = {name: (agents[name].device,) * n for name, n in (replicas or {}).items()}
        return cls(
            filled,
            by_name,
            task,
            batch_size,
            in_flight,
            bridges=bridges,
            devices=devices,
            cards=cards,
        )

    def processes_of(self, agent: str) -> tuple[str, ...]:
        """Names of an agent's processes."""
        return processes_of(agent, len(self.devices.get(agent, ("",))))

    @property
    def processes(self) -> dict[str, AgentSpec]:
        """The spec of each process by its name, one for each replica."""
        if not self.devices:
            return dict(self.agents)
        return {
            process: self._process_spec(spec, process, device)
            for agent, spec in self.agents.items()
            for process, device in zip(
                self.processes_of(agent), self.devices.get(agent, (spec.device,)), strict=True
            )
        }

    def _process_spec(self, spec: AgentSpec, process: str, device: str) -> AgentSpec:
        """The spec of one process, with the routes that lead to it and from it."""
        routes = {
            wire: [(route, ends) for route, ends in self.routes[wire].items() if process in ends]
            for wire in self.wires
        }
        return spec.model_copy(
            update={
                "name": process,
                "device": device,
                "bridges": tuple(
                    bridge.model_copy(update={"wire": route, "receiver": receiver})
                    for bridge in spec.bridges
                    for route, (_, receiver) in routes.get(bridge.wire, [])
                ),
                "incoming": tuple(route for wire in spec.incoming for route, _ in routes[wire]),
                "fallback": {
                    route: policy
                    for wire, policy in spec.fallback.items()
                    for route, _ in routes[wire]
                },
                "cpu_shares": {
                    neighbour: threads
                    for agent, threads in spec.cpu_shares.items()
                    for neighbour in self.processes_of(agent)
                },
            }
        )

    @property
    def ends(self) -> dict[str, tuple[str, str]]:
        """Route -> (sender process, receiver process): the wires of the bus."""
        return {
            route: (sender, receiver)
            for wire in self.wires
            for route, (sender, receiver) in self.routes[wire].items()
        }

    @property
    def fallback_wires(self) -> dict[str, str]:
        """Wire name -> the direct wire that its texts take once its sender is down."""
        return {
            name: direct_wire(wire.receiver)
            for name, wire in self.wires.items()
            if wire.when_down == "text"
        }

    @property
    def fallback_below(self) -> dict[str, float]:
        """Wire name -> confidence below which an answer is asked again with the text."""
        below: dict[str, float] = {}
        for name, wire in self.wires.items():
            reader, given = self.reader(name), wire.fallback_below
            given = reader.unsure_below if given == "card" and reader else given
            if isinstance(given, float):
                below[name] = given
        return below

    @property
    def agents_by_wire(self) -> dict[str, tuple[str, ...]]:
        """Wire name -> its agents, direct wires included."""
        between = {name: (wire.sender, wire.receiver) for name, wire in self.wires.items()}
        return between | {direct_wire(name): (name,) for name in self.agents}

    @property
    def routes(self) -> dict[str, Routes]:
        """Wire name -> its routes, direct wires included."""
        routes: dict[str, Routes] = {}
        for name, ends in self.agents_by_wire.items():
            processes = [self.processes_of(agent) for agent in ends]
            routes[name] = routes_of(*processes) if len(ends) == 2 else direct_routes_of(*processes)
        return routes

    def wire(self, sender: str, receiver: str, bridge: str | None = None) -> tuple[str, WireSpec]:
        """The wire between two agents, with its name.

        Raises:
            ScenarioError: there is none, or ``bridge`` is given and the wire has another one or
                none.
        """
        name = f"{sender}->{receiver}"
        wire = self.wires.get(name)
        if wire is None:
            for agent in (sender, receiver):
                self.check_agent(agent)
            raise ScenarioError(
                f"There is no wire {name}.", hint=suggestion(name, self.wires, "Wires")
            )
        used = self.bridges.get(name)
        if bridge is not None and bridge != used:
            raise ScenarioError(
                f"Wire {name} uses bridge {used}, not {bridge}."
                if used
                else f"Wire {name} has no bridge.",
                hint="Set the wire's bridge in the scenario.",
            )
        return name, wire

    def reader(self, wire: str) -> CardReader | None:
        """What the card of a bridge that answers any question says; None for other wires."""
        card = self.cards.get(wire)
        return card.reader if card is not None and card.answers == "free" else None

    def joint(self, senders: Sequence[str], receiver: str) -> list[WireSpec]:
        """The wires from several senders that one receiver reads together, in this order. Raises a
        ScenarioError if an agent, the joint wire or its bridges are missing."""
        for agent in (*senders, receiver):
            self.check_agent(agent)
        name = f"{'+'.join(senders)}->{receiver}"
        parts = [w for s in senders if (w := self.wires.get(f"{s}->{receiver}")) is not None]
        if not parts or any(part.joint != tuple(senders) for part in parts):
            known = dict.fromkeys(wire.set_name for wire in self.wires.values() if wire.joint)
            others = f" Joint wires: {', '.join(known)}." if known else ""
            raise ScenarioError(
                f"There is no joint wire {name}.{others} A receiver can read the soft tokens of "
                "several senders only if their bridges were trained together, in the same order.",
                hint=f"Add `- {{from: [{', '.join(senders)}], to: {receiver}}}` to the scenario's "
                "wires and run `agentwire train <scenario>`.",
            )
        if not any(one.name == name for one in self.agents[receiver].joint):
            raise ScenarioError(
                f"The bridges of joint wire {name} are missing.",
                hint="Train them together with `agentwire train <scenario>`.",
            )
        return parts

    def joint_order(self, senders: Sequence[str], receiver: str) -> tuple[str, ...]:
        """The senders in the order of their joint wire; in the given order if there is none."""
        wire = self.wires.get(f"{senders[0]}->{receiver}") if senders else None
        declared = wire.joint if wire is not None else ()
        return declared if {*declared} == {*senders} else tuple(senders)

    def check_agent(self, agent: str) -> None:
        """Raises a ScenarioError if there is no such agent."""
        if agent not in self.agents:
            raise ScenarioError(
                f"There is no agent {agent!r}.", hint=suggestion(agent, self.agents, "Agents")
            )
