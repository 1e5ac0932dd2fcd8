"""A matrix of two tiny language models: what is missing is named, trained, and then measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from agentwire.bridge.card import read_card

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
BASE = "tiny-llama--tiny-gemma--movie_snippets"


def agentwire(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AGENTWIRE_HOME": str(folder / "home")}
    for name in ("AGENTWIRE_DATA", "AGENTWIRE_BRIDGES"):
        env.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "agentwire", *arguments],
        cwd=folder,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


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
    refused = agentwire(tmp_path, "run", "sweep.yaml")
    assert refused.returncode == 2
    assert "2 of 2 cells have no bridge here" in refused.stderr
    assert "agentwire train sweep.yaml" in refused.stderr

    trained = agentwire(tmp_path, "run", "sweep.yaml", "--train", "--json")
    assert trained.returncode == 0, trained.stderr
    assert "training 2 bridges: m2, m4" in trained.stderr
    assert trained.stderr.count("training: loading: weights") <= 2  # once for both
    result = json.loads(trained.stdout)
    bridges = [cell["bridge"] for cell in result["cells"]]
    assert [b["name"] for b in bridges] == [f"{BASE}--m2", BASE]
    assert [b["recipe_differs"] for b in bridges] == [[], []]
    payloads = [cell["methods"]["bridge"]["payload_bytes"] for cell in result["cells"]]
    assert payloads == [2 * 48 * 2, 4 * 48 * 2]

    # A cell without its bridge is skipped if the scenario says so, and trained by `train`.
    scenario["matrix"] = {"soft_tokens": [4, 8], "missing": "skip"}
    file.write_text(json.dumps(scenario))
    skipped = agentwire(tmp_path, "run", "sweep.yaml", "--json")
    assert skipped.returncode == 0, skipped.stderr
    result = json.loads(skipped.stdout)
    assert [c["status"] for c in result["cells"]] == ["done", "skipped"]
    assert "there is no bridge" in result["cells"][1]["reason"]
    assert "are skipped" in skipped.stderr

    made = agentwire(tmp_path, "train", "sweep.yaml", "--json", "--plot", "loss.png")
    assert made.returncode == 0, made.stderr
    assert [m["bridge"] for m in json.loads(made.stdout)] == [f"{BASE}--m8"]
    assert (tmp_path / f"loss--{BASE}--m8.png").read_bytes().startswith(b"\x89PNG")


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
    assert done.returncode == 0, done.stderr
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
    assert json.loads(again.stdout) == []  # it is there


def test_seeds_of_a_set_of_bridges_are_trained_and_measured(
    tmp_path: Path, scenario: dict[str, Any], tiny_gemma: Path
) -> None:
    scenario["agents"]["eve"] = {**scenario["agents"]["ada"], "model": str(tiny_gemma)}
    scenario["wires"] = [{"from": ["ada", "eve"], "to": "bob", "soft_tokens": 4, "reads": "share"}]
    scenario["matrix"] = {"seeds": [0, 1]}
    (tmp_path / "sweep.yaml").write_text(json.dumps(scenario))
    trained = agentwire(tmp_path, "run", "sweep.yaml", "--train", "--json")
    assert trained.returncode == 0, trained.stderr
    assert "training 2 bridges: seed0, seed1" in trained.stderr
    assert trained.stderr.count("training: ada: weights") <= 1  # once for both
    result = json.loads(trained.stdout)
    name = "tiny-llama+tiny-gemma--tiny-gemma--movie_snippets"
    assert [c["bridge"]["name"] for c in result["cells"]] == [f"{name}.1", f"{name}--seed1.1"]
    methods = [cell["methods"]["bridge"] for cell in result["cells"]]
    assert [m["payload_bytes"] for m in methods] == [2 * 4 * 48 * 2] * 2
    assert [m["channels"]["soft"] for m in methods] == [16, 16]
    (summary,) = result["summary"]
    assert summary["seeds"] == [0, 1]
