"""Every shipped scenario is valid and runs on a machine without data or models."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwire.bridge.card import read_card
from agentwire.config import Config
from agentwire.errors import ScenarioError
from agentwire.evaluation.matrix.cells import check_bridges, plan_cells
from agentwire.evaluation.matrix.expand import expand
from agentwire.evaluation.matrix.summary import cell_bridge
from agentwire.evaluation.plan import pick_methods, plan_run
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolver, resolve
from agentwire.spec.scenario import Scenario
from agentwire.task.datasets import where

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "scenarios").glob("*.yaml"))
SMALL = {"smollm2-135m-instruct", "gemma-3-270m"}
WITHOUT_DOWNLOAD = {"sample", "generated"}
STUDIES = {
    "baselines",
    "compression",
    "fan_in",
    "hotpotqa",
    "mistral_to_llama_ag_news",
    "mistral_to_llama_trec",
    "passkey",
    "squad",
    "universal_unseen",
}
"""They need the real rows or bridges that are not shipped."""
FOR_ALL = [file for file in FILES if file.stem not in STUDIES]


class Bare(Inventory):
    """A machine without GPUs, data, hub and models; every library is installed."""

    def gpus(self) -> int:
        return 0

    def installed(self, library: str) -> bool:
        return True


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(Config(home=tmp_path / "home", offline=True))


def cells(scenario: Scenario, bare: Bare) -> list[Scenario]:
    if scenario.matrix is None:
        return [scenario]
    base = resolve(scenario, inventory=bare, require_bridges=False)
    return [cell.scenario for cell in expand(scenario, base.choices)]


@pytest.mark.parametrize("file", FOR_ALL, ids=lambda file: file.stem)
def test_it_resolves_on_a_bare_machine(file: Path, bare: Bare) -> None:
    for scenario in cells(load_scenario(file), bare):
        found = resolve(scenario, source=file, inventory=bare, require_bridges=False)
        assert {choice.model for choice in found.choices.values()} <= SMALL
        assert {spec.device for spec in found.agents.values()} == {"cpu"}
        if found.data is None:
            continue
        place = where(found.data.dataset, found.data.split, config=bare.config)
        assert place in {*WITHOUT_DOWNLOAD, "registry"}
        stands_in = any(s.kind == "dataset" for s in found.substitutions)
        assert stands_in == (place != "generated")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_name_is_its_files(file: Path) -> None:
    assert load_scenario(file).name == file.stem


def measured(file: Path, bare: Bare) -> list[str]:
    """The bridges that a scenario measures here, without those of skipped cells."""
    scenario = load_scenario(file)
    if scenario.task is None:
        return []
    if scenario.matrix is None:
        return [resolve(scenario, source=file, inventory=bare).wire.bridge]
    machine = Resolver(bare, source=file)
    plans = plan_cells(scenario, pick_methods(scenario.methods), machine)
    skip = scenario.matrix.missing == "skip"
    passed_over = check_bridges(plans, train=False, skip=skip, source=file)
    return [plan.resolved.wire.bridge for plan in plans if plan not in passed_over]


@pytest.mark.parametrize("file", FOR_ALL, ids=lambda file: file.stem)
def test_a_bridge_that_ships_serves_it_on_a_bare_machine(file: Path, bare: Bare) -> None:
    used = measured(file, bare)
    assert used or load_scenario(file).task is None
    assert {name for name in used if not (ROOT / "bridges" / name).is_dir()} == set()


def test_what_measures_speed_names_the_command_that_does(bare: Bare, tmp_path: Path) -> None:
    file = ROOT / "scenarios" / "throughput.yaml"
    resolved = resolve(load_scenario(file), source=file, inventory=bare, require_bridges=False)
    with pytest.raises(ScenarioError, match="no `task:`") as caught:
        plan_run(resolved, config=bare.config, methods=["bridge"], out=tmp_path)
    assert caught.value.hint == f"It measures speed: `agentwire bench all {file}`."


@pytest.mark.parametrize(
    "file", [file for file in FOR_ALL if "_to_" in file.stem], ids=lambda file: file.stem
)
def test_its_recipe_is_that_of_the_bridge_that_ships(file: Path, bare: Bare) -> None:
    """``agentwire train`` repeats the training of the shipped bridge, except for the seed."""
    scenario = load_scenario(file)
    assert scenario.task is not None
    sender, receiver = (
        stand_in.model
        for agent in (
            scenario.agents[scenario.wires[0].sender],
            scenario.agents[scenario.wires[0].receiver],
        )
        if (stand_in := agent.stand_in) is not None
    )
    card = read_card(ROOT / "bridges" / f"{sender}--{receiver}--{scenario.task.dataset}")
    recipe = {
        "architecture": card.architecture,
        **card.training.recipe,
        "seed": scenario.train.seed,
    }
    assert scenario.train.model_dump() == recipe


def differing(file: Path, bare: Bare) -> dict[str, list[str]]:
    """Cell -> training settings that differ between the shipped bridge and the file."""
    scenario = load_scenario(file)
    plans = plan_cells(scenario, pick_methods(scenario.methods), Resolver(bare, source=file))
    bridges = {plan.cell.id: cell_bridge(plan) for plan in plans}
    return {cell: bridge.recipe_differs for cell, bridge in bridges.items() if bridge is not None}


def test_recipes_of_matrices_are_those_of_their_bridges(bare: Bare) -> None:
    found = differing(ROOT / "scenarios" / "universal.yaml", bare)
    assert found and set(map(tuple, found.values())) == {()}


@pytest.fixture
def ag_news(tmp_path: Path) -> Path:
    """A copy of a scenario, beside this repository's agents and bridges.

    Its shipped bridge has seed 1, chosen on held-out rows.
    """
    file = tmp_path / "scenarios" / "llama_to_mistral_ag_news.yaml"
    for part in ("agents", "bridges"):
        (tmp_path / part).symlink_to(ROOT / part)
    file.parent.mkdir()
    text = (ROOT / "scenarios" / file.name).read_text(encoding="utf-8")
    file.write_text(text + "matrix:\n  soft_tokens: [8]\n  missing: skip\n", encoding="utf-8")
    return file


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_other_training_settings_are_reported(bare: Bare, ag_news: Path) -> None:
    assert list(differing(ag_news, bare).values()) == [[]]
    change(ag_news, "train: {", "train: {evaluate_every: 125, learning_rate: 0.002, ")
    assert list(differing(ag_news, bare).values()) == [["evaluate_every", "learning_rate"]]


def test_a_seed_is_compared_only_if_the_file_sets_one(bare: Bare, ag_news: Path) -> None:
    assert list(differing(ag_news, bare).values()) == [[]]
    change(ag_news, "soft_tokens: [8]\n  missing", "seeds: [0]\n  missing")
    assert list(differing(ag_news, bare).values()) == [["seed"]]
    change(ag_news, "seeds: [0]\n  missing", "soft_tokens: [8]\n  missing")
    change(ag_news, "train: {", "train: {seed: 2, ")
    assert list(differing(ag_news, bare).values()) == [["seed"]]


def test_both_directions_of_every_task_ship() -> None:
    stems = {file.stem for file in FILES}
    for task in ("sst2", "ag_news", "trec", "banking77"):
        assert {f"llama_to_mistral_{task}", f"mistral_to_llama_{task}"} <= stems
