"""A matrix of two tiny language models: missing bridges are named, trained, and then measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import agentwire

from agentwire.bridge.card import read_card

pytestmark = pytest.mark.integration

BASE = "tiny-llama--tiny-gemma--movie_snippets"


@pytest.fixture
def scenario(tmp_path: Path, tiny_llama: Path, tiny_gemma: Path) -> dict[str, Any]:
    tiny.write_rows(tmp_path / "rows" / "train.jsonl", 150, seed=1)
    tiny.write_rows(tmp_path / "rows" / "test.jsonl", 16, seed=2)
    return {
        "name": "sweep",
        "agents": {
            "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
            "bob": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
        },
        "wires": [{"from": "ada", "to": "bob", "soft_tokens": 4}],
        "task": {"dataset": "movie_snippets", "path": "rows"},
        "methods": ["bridge"],
        "train": {
            "steps": 2,
            "batch_size": 8,
            "hidden": 16,
            "heads": 2,
            "held_out": 16,
            "evaluate_every": 2,
        },
        "matrix": {"soft_tokens": [2, 4]},
    }


def test_missing_bridges_are_named_then_trained_then_measured(
    tmp_path: Path, scenario: dict[str, Any]
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(scenario))
    refused = agentwire(tmp_path, "run", "sweep.yaml", code=2)
    assert "2 of 2 cells have no bridge here" in refused.stderr
    assert "agentwire train sweep.yaml" in refused.stderr

    trained = agentwire(tmp_path, "train", "sweep.yaml", "--json", "--plot", "loss.png")
    assert [made["bridge"] for made in json.loads(trained.stdout)] == [f"{BASE}--m2", BASE]
    assert trained.stderr.count("loading: weights") <= 2  # each model once for both bridges
    assert (tmp_path / f"loss--{BASE}--m2.png").read_bytes().startswith(b"\x89PNG")

    # A cell without a bridge is skipped if the scenario says so.
    scenario["matrix"] = {"soft_tokens": [2, 8], "missing": "skip"}
    file.write_text(json.dumps(scenario))
    skipped = agentwire(tmp_path, "run", "sweep.yaml", "--json")
    assert "are skipped" in skipped.stderr
    measured, missing = json.loads(skipped.stdout)["cells"]
    assert (measured["status"], missing["status"]) == ("done", "skipped")
    assert measured["bridge"]["name"] == f"{BASE}--m2"
    assert measured["bridge"]["recipe_differs"] == []
    assert measured["methods"]["bridge"]["payload_bytes"] == 2 * 48 * 2
    assert "there is no bridge" in missing["reason"]


def test_a_bridge_that_several_tasks_name_is_trained_on_all_of_them(
    tmp_path: Path, scenario: dict[str, Any]
) -> None:
    questions = tmp_path / "questions"
    tiny.write_rows(questions / "train.jsonl", 120, seed=3)
    tiny.write_rows(questions / "test.jsonl", 16, seed=4)
    scenario["wires"][0]["bridge"] = "both"
    tasks = [
        {"dataset": "movie_snippets", "path": "rows"},
        {"dataset": "subj", "path": "questions"},
    ]
    scenario["matrix"] = {"tasks": tasks}
    (tmp_path / "both.yaml").write_text(json.dumps(scenario))
    done = agentwire(tmp_path, "run", "both.yaml", "--train", "--json")
    assert "training one bridge for movie_snippets, subj" in done.stderr
    result = json.loads(done.stdout)
    assert [cell["status"] for cell in result["cells"]] == ["done", "done"]
    names = {(cell["bridge"]["name"], cell["bridge"]["fingerprint"]) for cell in result["cells"]}
    assert len(names) == 1 and names.pop()[0] == "both"
    card = read_card(tmp_path / "bridges" / "both")
    assert card.prompts == ("any",) and card.soft_tokens == 4
    assert card.training.dataset == "movie_snippets+subj"
    assert card.training.rows + card.training.held_out <= 270
    assert set(card.training.provenance) == {"movie_snippets", "subj"}
    again = agentwire(tmp_path, "train", "both.yaml", "--json")
    assert json.loads(again.stdout) == []  # the bridge exists


def test_seeds_of_a_set_of_bridges_are_trained_and_measured(
    tmp_path: Path, scenario: dict[str, Any], tiny_gemma: Path
) -> None:
    scenario["agents"]["eve"] = {**scenario["agents"]["ada"], "model": str(tiny_gemma)}
    scenario["wires"] = [{"from": ["ada", "eve"], "to": "bob", "soft_tokens": 4, "reads": "share"}]
    scenario["matrix"] = {"seeds": [0, 1]}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(scenario))
    trained = agentwire(tmp_path, "train", "sweep.yaml", "--json")
    name = "tiny-llama+tiny-gemma--tiny-gemma--movie_snippets"
    assert [made["bridge"] for made in json.loads(trained.stdout)] == [
        f"{base}.{place}" for base in (name, f"{name}--seed1") for place in (1, 2)
    ]
    assert trained.stderr.count("ada: weights") <= 1  # once for both

    scenario["matrix"] = {"seeds": [1]}
    file.write_text(json.dumps(scenario))
    result = json.loads(agentwire(tmp_path, "run", "sweep.yaml", "--json").stdout)
    (cell,) = result["cells"]
    assert cell["bridge"]["name"] == f"{name}--seed1.1"
    assert cell["methods"]["bridge"]["payload_bytes"] == 2 * 4 * 48 * 2
    assert cell["methods"]["bridge"]["channels"]["soft"] == 16
    (summary,) = result["summary"]
    assert summary["seeds"] == [1]
