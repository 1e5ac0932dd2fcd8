"""Only the machine that loads a model downloads its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentwire.config import Config
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory, WeightsLocation
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.scenario import ModelChoice, Scenario


class Machine(Inventory):
    """A machine without weights that records what it downloads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Config(home=folder))
        self.fetched: list[str] = []

    def locate(self, choice: ModelChoice) -> WeightsLocation:
        return WeightsLocation(None, kind="registry", fetchable=True)

    def fingerprint(self, choice: ModelChoice) -> str | None:
        return None

    def fetch(self, model: str, progress: Any = None) -> Path:
        self.fetched.append(model)
        return Path("/weights") / model


def resolved(machine: Machine) -> Resolved:
    agents = {
        "a": {"model": "smollm2-135m-instruct", "device": "cpu"},
        "b": {"model": "gemma-3-270m", "device": "cpu", "replicas": 2},
    }
    scenario = Scenario.model_validate(
        {"name": "two", "agents": agents, "wires": [{"from": "a", "to": "b"}]}
    )
    return resolve(scenario, inventory=machine, require_bridges=False)


@pytest.mark.parametrize(
    ("elsewhere", "fetched"),
    [
        ((), ["smollm2-135m-instruct", "gemma-3-270m"]),
        (("a",), ["gemma-3-270m"]),
        (("b.1",), ["smollm2-135m-instruct", "gemma-3-270m"]),  # b.2 is here
        (("b.1", "b.2"), ["smollm2-135m-instruct"]),
        (("a", "b.1", "b.2"), []),
    ],
    ids=str,
)
def test_each_machine_fetches_for_its_own_processes(
    tmp_path: Path, elsewhere: tuple[str, ...], fetched: list[str]
) -> None:
    machine = Machine(tmp_path)
    ready = fetch(resolved(machine), inventory=machine, elsewhere=elsewhere)
    assert machine.fetched == fetched
    for agent, spec in ready.agents.items():
        assert spec.folder == (f"/weights/{spec.model}" if spec.model in fetched else None), agent
