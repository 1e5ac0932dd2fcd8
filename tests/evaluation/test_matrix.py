"""Expanding a matrix: cells, their scenarios, and the names of their bridges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenario_files import write

from agentwire.errors import ScenarioError
from agentwire.evaluation.matrix.expand import Cell, expand
from agentwire.scenario.bridges import bridge_name
from agentwire.scenario.load import load_scenario
from agentwire.spec.scenario import ModelChoice, Scenario

BASE = """\
name: sweep
agents:
  ada: {model: big-a, layer: 16, stand_in: {model: small-a, layer: 15}}
  bob: {model: big-b, layer: 8}
wires:
  - {from: ada, to: bob}
  - {from: bob, to: ada, soft_tokens: 4}
task: {dataset: sst2, split: validation}
train: {learning_rate: 0.0005, seed: 0}
matrix:
"""


def loaded(folder: Path, matrix: str) -> Scenario:
    return load_scenario(write(folder, BASE + matrix))


def cells(folder: Path, matrix: str, **models: str) -> tuple[Cell, ...]:
    scenario = loaded(folder, matrix)
    choices: dict[str, ModelChoice] = dict(scenario.agents)
    for name, model in models.items():
        stand_in = scenario.agents[name].stand_in
        assert stand_in is not None
        assert stand_in.model == model
        choices[name] = stand_in
    return expand(scenario, choices)


def names(found: tuple[Cell, ...]) -> list[str]:
    """The bridge names with the named models."""
    return [
        bridge_name(cell.wire, dict(cell.scenario.agents), cell.scenario.task) for cell in found
    ]


def test_every_combination_is_a_cell_and_seeds_vary_fastest(tmp_path: Path) -> None:
    found = cells(tmp_path, "  {soft_tokens: [4, 8], seeds: [0, 1]}\n")
    assert [dict(cell.axes) for cell in found] == [
        {"soft_tokens": 4, "seed": 0},
        {"soft_tokens": 4, "seed": 1},
        {"soft_tokens": 8, "seed": 0},
        {"soft_tokens": 8, "seed": 1},
    ]
    assert [cell.id for cell in found] == ["m4--seed0", "m4--seed1", "m8--seed0", "m8--seed1"]
    assert [cell.scenario.wires[0].soft_tokens for cell in found] == [4, 4, 8, 8]
    assert [cell.scenario.train.seed for cell in found] == [0, 1, 0, 1]
    assert all(cell.scenario.matrix is None for cell in found)


def test_bridges_have_distinct_names_and_the_scenarios_own_values_the_base_name(
    tmp_path: Path,
) -> None:
    found = cells(tmp_path, "  {soft_tokens: [4, 8], seeds: [0, 1]}\n")
    base = "big-a--big-b--sst2"
    assert names(found) == [f"{base}--m4", f"{base}--m4--seed1", base, f"{base}--seed1"]


def test_train_settings_are_axes(tmp_path: Path) -> None:
    found = cells(tmp_path, "  train: {learning_rate: [0.0005, 0.001], steps: [10, 1500]}\n")
    assert [c.scenario.train.steps for c in found] == [10, 10, 1500, 1500]
    assert [c.scenario.train.learning_rate for c in found] == [0.0005, 0.001, 0.0005, 0.001]
    assert names(found)[1] == "big-a--big-b--sst2--steps-10--learning_rate-0.001"
    assert dict(found[0].axes) == {"train.learning_rate": 0.0005, "train.steps": 10}


def test_one_at_a_time_varies_around_the_scenarios_own_values(tmp_path: Path) -> None:
    matrix = "  {combine: one_at_a_time, soft_tokens: [4, 8], train: {steps: [10, 1500]}}\n"
    found = cells(tmp_path, matrix)
    shown = [(cell.axes["soft_tokens"], cell.axes["train.steps"]) for cell in found]
    assert shown == [(4, 1500), (8, 1500), (8, 10)]


def test_layers_are_those_of_what_runs(tmp_path: Path) -> None:
    matrix = "  layers: [{named: 8, stand_in: 7}, {named: 16, stand_in: 15}]\n"
    named = cells(tmp_path, matrix)
    assert [cell.axes["layer"] for cell in named] == [8, 16]
    assert names(named) == ["big-a--big-b--sst2--layer8", "big-a--big-b--sst2"]
    agents = named[0].scenario.agents
    assert agents["ada"].layer == 8
    assert agents["ada"].stand_in is not None
    assert agents["ada"].stand_in.layer == 7
    small = cells(tmp_path, matrix, ada="small-a")
    assert [cell.axes["layer"] for cell in small] == [7, 15]
    assert small[0].wire.bridge == "auto--layer7"
    assert small[1].wire.bridge == "auto"


def test_wires_are_directions_and_the_measured_one_goes_first(tmp_path: Path) -> None:
    found = cells(tmp_path, "  wires: ['ada->bob', 'bob->ada']\n")
    assert [cell.id for cell in found] == ["ada-to-bob", "bob-to-ada"]
    assert [[w.name for w in cell.scenario.wires] for cell in found] == [
        ["ada->bob", "bob->ada"],
        ["bob->ada", "ada->bob"],
    ]
    assert names(found) == ["big-a--big-b--sst2", "big-b--big-a--sst2"]


JOINED = """\
name: joined
agents:
  ada: {model: big-a, layer: 16}
  bob: {model: big-b, layer: 8}
  eve: {model: big-b}
wires:
  - {from: ada, to: bob}
  - {from: [bob, ada], to: eve, BRIDGE}
task: {dataset: sst2, split: validation}
matrix:
"""


def test_senders_that_share_a_wire_vary_together(tmp_path: Path) -> None:
    def joined(matrix: str, bridge: str = "auto") -> tuple[Cell, ...]:
        text = JOINED.replace("BRIDGE", f"bridge: {bridge}")
        return expand(load_scenario(write(tmp_path, f"{text}  {matrix}\n")))

    wires = "wires: ['bob+ada->eve', 'ada->bob']"
    found = joined(f"{{{wires}, soft_tokens: [4, 8], seeds: [0, 1]}}")
    ids = [f"bob-ada-to-eve--m{m}--seed{seed}" for m in (4, 8) for seed in (0, 1)]
    assert [cell.id for cell in found[:4]] == ids
    cell = found[1]
    assert [part.name for part in cell.parts] == ["bob->eve", "ada->eve"]
    assert [part.soft_tokens for part in cell.parts] == [4, 4]
    names = [bridge_name(p, dict(cell.scenario.agents), cell.scenario.task) for p in cell.parts]
    assert names == [f"big-b+big-a--big-b--sst2--m4--seed1.{place}" for place in (1, 2)]
    assert [wire.name for wire in found[4].scenario.wires] == ["ada->bob", "bob->eve", "ada->eve"]
    with pytest.raises(
        ScenarioError, match=r"bob\+ada->eve has several senders, each with its own"
    ):
        joined(f"{{{wires}, layers: [1]}}")
    with pytest.raises(ScenarioError, match="a joint set of bridges is trained on one task"):
        joined(f"{{{wires}, tasks: [{{dataset: sst2}}, {{dataset: subj}}]}}", bridge="both")


def test_tasks_are_an_axis_and_a_series_shares_its_bridge(tmp_path: Path) -> None:
    found = cells(tmp_path, "  tasks: [{dataset: passkey_1}, {dataset: passkey_2}]\n")
    assert [cell.axes["task"] for cell in found] == ["passkey_1", "passkey_2"]
    assert set(names(found)) == {"big-a--big-b--passkey"}


@pytest.mark.parametrize(
    ("matrix", "line", "said"),
    [
        ("  {sedes: [1]}\n", 11, "unknown key 'matrix.sedes'"),
        ("  train:\n    learning_rat: [1]\n", 12, "unknown key 'matrix.train.learning_rat'"),
        ("  seeds: [0]\n  train:\n    steps: [0]\n", 13, "matrix.train.steps"),
        ("  soft_tokens: [8, 9999]\n", 11, "matrix.soft_tokens[1]"),
        ("  soft_tokens: [8, 8]\n", 11, "8 is given twice"),
        ("  seeds: [0]\n  wires: ['ada->eve']\n", 12, "matrix.wires[0] names the wire 'ada->eve'"),
        ("  {combine: product}\n", 10, "no axis is given"),
        ("  layers: [0]\n", 11, "matrix.layers[0]"),
    ],
)
def test_a_bad_axis_is_named_by_its_line(tmp_path: Path, matrix: str, line: int, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        loaded(tmp_path, matrix)
    assert f"scenario.yaml:{line}:" in caught.value.message
    assert said in caught.value.message


def test_settings_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"heads: 3.*multiple of heads"):
        cells(tmp_path, "  train: {heads: [8, 3]}\n")


def test_a_matrix_needs_a_task(tmp_path: Path) -> None:
    text = (BASE + "  seeds: [0, 1]\n").replace("task: {dataset: sst2, split: validation}\n", "")
    with pytest.raises(ScenarioError, match="a matrix needs a `task:`"):
        load_scenario(write(tmp_path, text))


def test_too_many_cells_are_refused(tmp_path: Path) -> None:
    seeds: list[Any] = list(range(1001))
    with pytest.raises(ScenarioError, match="more than 1000 cells"):
        cells(tmp_path, f"  seeds: {seeds}\n")
