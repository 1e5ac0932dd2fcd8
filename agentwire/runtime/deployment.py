"""What a runtime runs: agents, wires and defaults, whether from a scenario or built by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentwire.errors import ScenarioError
from agentwire.scenario.resolve import Resolved
from agentwire.spec.agent import AgentSpec, OutgoingBridge
from agentwire.spec.registry import suggestion
from agentwire.spec.routes import Routes, direct_routes_of, processes_of, routes_of
from agentwire.spec.scenario import WireSpec
from agentwire.task.definitions import load_definition
from agentwire.wire.messages import TaskSpec, direct_wire


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything a runtime starts from.

    Attributes:
        agents: what each agent is born with, by name.
        wires: by wire name.
        task: what is asked where a call does not say; None: each call must.
        batch_size: rows of one message of ``send_many``.
        in_flight: messages of ``send_many`` that may be outstanding.
        deadline_s: of a request where a call does not say, in seconds.
        bridges: wire name -> name of its bridge (None: it has none).
        devices: agent -> the device of each of its replicas; an agent that is not in here has one
            process, on the device that its spec says.
    """

    agents: Mapping[str, AgentSpec]
    wires: Mapping[str, WireSpec]
    task: TaskSpec | None = None
    batch_size: int = 16
    in_flight: int = 2
    deadline_s: float = 300.0
    bridges: Mapping[str, str | None] = field(default_factory=dict)
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, resolved: Resolved) -> Deployment:
        """The wiring of a resolved scenario."""
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
        deadline_s: float = 300.0,
        replicas: Mapping[str, int] | None = None,
    ) -> Deployment:
        """A wiring built by hand; the wires' ends are filled into the specs.

        An agent's own ``bridges`` entry says which bridge folder a wire uses; a wire without one
        has no bridge.

        Args:
            replicas: agent -> how many processes it has, where that is not one.
        """
        by_name = {wire.name: wire for wire in wires}
        filled: dict[str, AgentSpec] = {}
        for name, spec in agents.items():
            incoming = tuple(w.name for w in wires if w.receiver == name)
            fallback = {w.name: w.fallback for w in wires if w.sender == name}
            filled[name] = spec.model_copy(update={"incoming": incoming, "fallback": fallback})
        bridges = {b.wire: b.folder for spec in filled.values() for b in spec.bridges}
        devices = {name: (agents[name].device,) * n for name, n in (replicas or {}).items()}
        return cls(filled, by_name, task, batch_size, in_flight, deadline_s, bridges, devices)

    def processes_of(self, agent: str) -> tuple[str, ...]:
        """Names of an agent's processes."""
        return processes_of(agent, len(self.devices.get(agent, ("",))))

    @property
    def processes(self) -> dict[str, AgentSpec]:
        """What each process is born with, by its name: replicas one by one."""
        if not self.devices:
            return dict(self.agents)
        return {
            process: self._born(spec, process, device)
            for agent, spec in self.agents.items()
            for process, device in zip(
                self.processes_of(agent), self.devices.get(agent, (spec.device,)), strict=True
            )
        }

    def _born(self, spec: AgentSpec, process: str, device: str) -> AgentSpec:
        """One process of an agent, with the routes that lead to it and from it."""
        joined = {
            wire: [(way, ends) for way, ends in self.routes[wire].items() if process in ends]
            for wire in self.wires
        }
        return spec.model_copy(
            update={
                "name": process,
                "device": device,
                "bridges": tuple(
                    OutgoingBridge(wire=way, receiver=receiver, folder=bridge.folder)
                    for bridge in spec.bridges
                    for way, (_, receiver) in joined.get(bridge.wire, [])
                ),
                "incoming": tuple(way for wire in spec.incoming for way, _ in joined[wire]),
                "fallback": {
                    way: policy for wire, policy in spec.fallback.items() for way, _ in joined[wire]
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
        """Route -> (sender, receiver), by process: the wires that the bus knows."""
        return {
            way: (sender, receiver)
            for wire in self.wires
            for way, (sender, receiver) in self.routes[wire].items()
        }

    @property
    def detours(self) -> dict[str, str]:
        """Wire name -> the direct wire that its texts take where its sender is gone for good."""
        return {
            name: direct_wire(wire.receiver)
            for name, wire in self.wires.items()
            if wire.when_down == "text"
        }

    @property
    def wires_of_agents(self) -> dict[str, tuple[str, ...]]:
        """Wire name -> agents on it, direct wires included."""
        between = {name: (wire.sender, wire.receiver) for name, wire in self.wires.items()}
        return {**between, **{direct_wire(name): (name,) for name in self.agents}}

    @property
    def routes(self) -> dict[str, Routes]:
        """Wire name -> its routes, direct wires included."""
        routes: dict[str, Routes] = {}
        for name, ends in self.wires_of_agents.items():
            processes = [self.processes_of(agent) for agent in ends]
            routes[name] = routes_of(*processes) if len(ends) == 2 else direct_routes_of(*processes)
        return routes

    def wire(self, sender: str, receiver: str) -> WireSpec:
        """The wire between two agents.

        Raises:
            ScenarioError: there is none.
        """
        for agent in (sender, receiver):
            self.check_agent(agent)
        name = f"{sender}->{receiver}"
        if name not in self.wires:
            raise ScenarioError(
                f"There is no wire {name}.", hint=suggestion(name, self.wires, "Wires")
            )
        return self.wires[name]

    def joint(self, senders: Sequence[str], receiver: str) -> list[WireSpec]:
        """The wires of several senders that one receiver reads together, in that order.

        Raises:
            ScenarioError: no such agent; no wire joins them so; or its bridges are not here.
        """
        for agent in (*senders, receiver):
            self.check_agent(agent)
        name = f"{'+'.join(senders)}->{receiver}"
        parts = [w for s in senders if (w := self.wires.get(f"{s}->{receiver}")) is not None]
        if not parts or any(part.joint != tuple(senders) for part in parts):
            known = dict.fromkeys(wire.set_name for wire in self.wires.values() if wire.joint)
            order = f" (there is {', '.join(known)})" if known else ""
            raise ScenarioError(
                f"No wire joins {name}{order}: soft tokens of several senders are read together "
                "only by a receiver whose bridges were trained for that, in that order.",
                hint=f"Write `- {{from: [{', '.join(senders)}], to: {receiver}}}` into the "
                "scenario's wires, and train it: agentwire train <scenario>.",
            )
        if not any(one.name == name for one in self.agents[receiver].joint):
            raise ScenarioError(
                f"The bridges of wire {name} are not here: {receiver} cannot read its senders' "
                "soft tokens together.",
                hint="Train them together: agentwire train <scenario>.",
            )
        return parts

    def joint_order(self, senders: Sequence[str], receiver: str) -> tuple[str, ...]:
        """These senders in the order of the wire that they share; as they are without one."""
        wire = self.wires.get(f"{senders[0]}->{receiver}") if senders else None
        declared = wire.joint if wire is not None else ()
        return declared if {*declared} == {*senders} else tuple(senders)

    def check_agent(self, agent: str) -> None:
        """
        Raises:
            ScenarioError: no such agent.
        """
        if agent not in self.agents:
            raise ScenarioError(
                f"There is no agent {agent!r}.", hint=suggestion(agent, self.agents, "Agents")
            )

    def check_bridge(self, wire: str, bridge: str | None) -> None:
        """
        Raises:
            ScenarioError: a bridge is named, and the wire uses another or none.
        """
        used = self.bridges.get(wire)
        if bridge is not None and bridge != used:
            raise ScenarioError(
                f"wire {wire} uses the bridge {used}, not {bridge}."
                if used
                else f"wire {wire} has no bridge.",
                hint="Name the bridge in the scenario's wire.",
            )
