"""``agentwire agent``: runs one agent for a bus on another machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from agentwire.agent.join import join
from agentwire.bus.keys import read_pair, read_public
from agentwire.bus.transport import PeerKeys
from agentwire.cli.options import Device
from agentwire.cli.terminal import echo
from agentwire.errors import ScenarioError
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.fetch import fetch
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.spec.agent import AgentSpec


def agent(
    scenario: Annotated[Path, typer.Argument(help="The same scenario file as on the other side.")],
    name: Annotated[str, typer.Argument(help="Agent to run; of replicas: name.1, name.2, …")],
    connect: Annotated[str, typer.Option("--connect", help="Address of the bus: tcp://host:port.")],
    key: Annotated[Path, typer.Option("--key", help="File with this agent's keys: <name>.key.")],
    server: Annotated[
        str, typer.Option("--server", help="The bus's public key, or its file bus.pub.")
    ],
    device: Device = None,
) -> None:
    """Load an agent's model here and join a bus on another machine; reconnect when it is lost.

    On the other machine: `agentwire keys allow <name> <its public key>`, then
    `agentwire run <scenario> --listen tcp://<address>:<port> --remote <name>`.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="WARNING")
    pair = read_pair(key)
    keys = PeerKeys(pair.public, pair.secret, read_public(server)[1])
    spec = spec_of(scenario, name, device)
    code = join(spec, connect, keys, on_event=lambda line: echo(line, err=True))
    raise typer.Exit(int(code))


def spec_of(scenario: Path, name: str, device: str | None) -> AgentSpec:
    """The agent as this machine runs it."""
    loaded = load_scenario(scenario)
    if name not in loaded.processes:
        raise ScenarioError(
            f"{scenario} has no agent {name!r}.", hint=f"Agents: {', '.join(loaded.processes)}."
        )
    resolved = resolve(loaded, source=scenario, device=device, require_bridges=False)
    others = [process for process in loaded.processes if process != name]
    return Deployment.of(fetch(resolved, elsewhere=others)).processes[name]
