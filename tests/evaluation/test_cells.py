"""Planned cells: the methods of each, and missing bridges."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_files import FAKE, write, write_rows

from agentwire.config import Config
from agentwire.errors import BridgeError, MissingBridge, ScenarioError
from agentwire.evaluation.matrix.cells import (
    CellPlan,
    check_bridges,
    plan_cells,
    trained_together,
    without_bridges,
)
from agentwire.evaluation.plan import pick_methods
from agentwire.scenario.inventory import Inventory, WeightsLocation
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolver
from agentwire.spec.scenario import ModelChoice

TASK = "task: {dataset: movie_snippets, path: rows.jsonl}\n"
REAL = FAKE.replace(", backend: fake", ", layer: 2")


class Here(Inventory):
    """A machine with the weights of every model."""

    def gpus(self) -> int:
        return 0

    def locate(self, choice: ModelChoice) -> WeightsLocation:
        return WeightsLocation(Path("/weights"), needed=choice.backend != "fake")

    def bridge_folders(self, source: Path | None = None) -> list[Path]:
        return []


def plans(folder: Path, text: str, methods: list[str]) -> tuple[CellPlan, ...]:
    write_rows(folder, 4)
    machine = Resolver(Here(Config(home=folder / "home", offline=True)))
    return plan_cells(load_scenario(write(folder, text)), pick_methods(methods), machine)


def test_a_method_is_measured_once_for_what_it_depends_on(tmp_path: Path) -> None:
    text = FAKE + "  - {from: bob, to: ada}\n" + TASK
    text += "matrix: {wires: [ada->bob, bob->ada], soft_tokens: [4, 8]}\n"
    found = plans(tmp_path, text, ["bridge", "receiver_direct"])
    assert [[m.name for m in plan.methods] for plan in found] == [
        ["bridge", "receiver_direct"],
        ["bridge"],
        ["bridge", "receiver_direct"],
        ["bridge"],
    ]
    assert len(plans(tmp_path, text, ["receiver_direct"])) == 2


def test_a_trained_baseline_depends_on_layer_and_seed_but_not_on_soft_tokens(
    tmp_path: Path,
) -> None:
    text = FAKE.replace("model-a, backend: fake", "model-a, backend: fake, layer: 2") + TASK
    text += "matrix: {soft_tokens: [4, 8], layers: [1, 2], seeds: [0, 1]}\n"
    found = plans(tmp_path, text, ["probe_mean", "receiver_direct"])
    assert [plan.cell.id for plan in found] == [
        "layer1--m4--seed0",
        "layer1--m4--seed1",
        "layer2--m4--seed0",
        "layer2--m4--seed1",
    ]
    assert [[m.name for m in plan.methods] for plan in found][:2] == [
        ["probe_mean", "receiver_direct"],
        ["probe_mean"],
    ]


def test_a_missing_bridge_is_an_error_unless_it_is_trained(tmp_path: Path) -> None:
    found = plans(tmp_path, REAL + TASK + "matrix: {seeds: [0, 1]}\n", ["bridge"])
    assert all(plan.can_be_trained for plan in found)
    assert check_bridges(found, train=True, skip=False, source=None) == ()
    for skip in (False, True):  # nothing would be left to measure
        with pytest.raises(MissingBridge, match="2 of 2 cells have no bridge") as caught:
            check_bridges(found, train=False, skip=skip, source=Path("x.yaml"))
        assert "agentwire train x.yaml" in (caught.value.hint or "")


def test_what_needs_no_bridge_is_left_of_a_cell(tmp_path: Path) -> None:
    methods = ["bridge", "receiver_direct"]
    first, second = plans(tmp_path, REAL + TASK + "matrix: {seeds: [0, 1]}\n", methods)
    left = without_bridges(first)
    assert left is not None
    assert [m.name for m in left.methods] == ["receiver_direct"]
    assert without_bridges(second) is None


def test_a_bridge_that_does_not_fit_is_never_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "model-a--model-b--movie_snippets"
    broken.mkdir()
    (broken / "card.yaml").write_text("name: x\n")
    write_rows(tmp_path, 4)
    file = write(tmp_path, REAL + TASK + "matrix: {seeds: [0, 1]}\n")
    machine = Resolver(Here(Config(home=tmp_path / "home", offline=True)), source=file)
    found = plan_cells(load_scenario(file), pick_methods(["bridge"]), machine)
    with pytest.raises(BridgeError, match=r"cell seed0: .* is not a bridge card"):
        check_bridges(found, train=True, skip=True, source=file)


@pytest.mark.parametrize(
    ("matrix", "together"),
    [
        ("{seeds: [0, 1], soft_tokens: [4, 8], layers: [1, 2]}", 8),
        ("{train: {learning_rate: [0.001, 0.01], batch_size: [8, 16], dropout: [0.0, 0.2]}}", 8),
        ("{train: {steps: [10, 20]}}", 1),
        ("{train: {held_out: [100, 200], max_text_tokens: [32, 64]}}", 1),
        ("{wires: [ada->bob, bob->ada]}", 1),
    ],
)
def test_which_cells_can_be_trained_in_one_go(tmp_path: Path, matrix: str, together: int) -> None:
    text = REAL + "  - {from: bob, to: ada}\n" + TASK
    found = plans(tmp_path, f"{text}matrix: {matrix}\n", ["bridge"])
    first, *later = found
    group = trained_together(first, later)
    assert group[0] is first
    assert [plan.cell.id for plan in group] == [plan.cell.id for plan in found[:together]]


def test_sets_are_trained_together_and_scored_as_a_run_scores_them(
    tmp_path: Path,
) -> None:
    text = REAL.replace("agents:\n", "agents:\n  eve: {model: m-eve}\n")
    text = text.replace("{from: ada, to: bob}", "{from: [ada, bob], to: eve}") + TASK
    assert "from: [ada, bob]" in text
    found = plans(tmp_path, text + "matrix: {seeds: [0, 1]}\n", ["bridge", "receiver_direct"])
    assert [plan.can_be_trained for plan in found] == [True, True]
    assert len(trained_together(found[0], found[1:])) == 2
    with pytest.raises(ScenarioError, match="text_relay supports one sender only"):
        plans(tmp_path, text + "matrix: {seeds: [0, 1]}\n", ["bridge", "text_relay"])


def test_tasks_of_a_series_are_one_bridge_of_a_training(tmp_path: Path) -> None:
    tasks = ", ".join(f"{{dataset: passkey_{n}, split: test}}" for n in (1, 2))
    text = REAL + "task: {dataset: passkey_1, split: test}\n"
    found = plans(
        tmp_path, f"{text}matrix: {{tasks: [{tasks}], soft_tokens: [4, 8]}}\n", ["bridge"]
    )
    group = trained_together(found[0], found[1:])
    assert [plan.cell.axes["soft_tokens"] for plan in group] == [4, 8]
    assert len(found) == 4


def test_tasks_that_name_one_bridge_train_it_together(tmp_path: Path) -> None:
    names = ("trec", "subj", "ag_news")
    tasks = "[" + ", ".join(f"{{dataset: {name}, path: rows.jsonl}}" for name in names) + "]"
    named = REAL.replace("to: bob}", "to: bob, bridge: both}")
    assert named != REAL
    found = plans(tmp_path, f"{named}{TASK}matrix: {{tasks: {tasks}, seeds: [0, 1]}}\n", ["bridge"])
    first, *later = found
    group = trained_together(first, later)
    assert [plan.cell.id for plan in group] == ["trec--seed0", "subj--seed0", "ag_news--seed0"]
    assert {plan.resolved.wire.bridge for plan in group} == {"both"}
    # Without a name of its own each task has its own bridge, and reads other texts.
    apart = plans(tmp_path, f"{REAL}{TASK}matrix: {{tasks: {tasks}}}\n", ["bridge"])
    assert len(trained_together(apart[0], apart[1:])) == 1
