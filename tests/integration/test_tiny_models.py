"""Train and run two tiny language models through real processes, and check the answers.

The commands are those of a user (`agentwire train`, `agentwire run`). Every prediction must equal
that of the same pipeline in this process, row by row and without a bus.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import agentwire

pytestmark = pytest.mark.integration

METHODS = ["bridge", "text_relay", "receiver_direct", "sender_direct"]
BASELINES = ["probe_mean", "prompt_tuning_blind", "zero_payload", "shuffled_payload", "label_relay"]
ROWS = 48
SOFT_TOKENS, WIDTH = 4, 48


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a command prints."""
    printed: dict[str, Any] = json.loads(agentwire(folder, *arguments, "--json").stdout)
    return printed


@dataclass(frozen=True)
class Runs:
    """The trained bridge, and a run with it."""

    folder: Path
    trained: dict[str, Any]
    result: dict[str, Any]

    def predictions(self, method: str) -> dict[int, dict[str, Any]]:
        """Records of one method by row."""
        run = self.folder / "runs" / self.result["run_id"]
        lines = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
        return {r["row"]: r for r in lines if r["method"] == method}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path) -> Runs:
    folder = tmp_path_factory.mktemp("tiny-run")
    tiny.write_rows(folder / "rows" / "train.jsonl", 300, seed=1)
    tiny.write_rows(folder / "rows" / "test.jsonl", ROWS, seed=2)
    scenario = {
        "name": "tiny",
        "agents": {
            "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
            "bob": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
        },
        "wires": [{"from": "ada", "to": "bob", "soft_tokens": SOFT_TOKENS}],
        "task": {"dataset": "movie_snippets", "path": "rows"},
        "methods": METHODS + BASELINES,
        "batch_size": 16,
        "train": {
            "steps": 40,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "hidden": 32,
            "heads": 4,
            "dropout": 0.0,
            "average": 0.9,
            "held_out": 16,
            "evaluate_every": 20,
        },
    }
    (folder / "scenario.yaml").write_text(json.dumps(scenario))
    trained = run(folder, "train", "scenario.yaml")
    return Runs(folder, trained, run(folder, "run", "scenario.yaml"))


def test_a_run_uses_the_trained_bridge(runs: Runs) -> None:
    from agentwire.bridge.store import verify

    name = "tiny-llama--tiny-gemma--movie_snippets"
    assert runs.trained["bridge"] == name
    card = verify(runs.folder / "bridges" / name)
    config = json.loads((runs.folder / "runs" / runs.result["run_id"] / "config.json").read_text())
    assert config["wires"]["ada->bob"]["weights_sha256"] == card.weights_sha256


def test_every_row_has_one_answer_by_every_method(runs: Runs) -> None:
    result = runs.result
    assert list(result["methods"]) == METHODS + BASELINES
    for name, method in result["methods"].items():
        assert (method["n"], method["errors"]) == (ROWS, {}), name
        assert sorted(runs.predictions(name)) == list(range(ROWS))
    assert result["methods"]["bridge"]["channels"] == {"soft": ROWS, "text": 0}
    assert result["methods"]["bridge"]["reasons"] == {}


def test_payloads_travel_between_two_processes(runs: Runs) -> None:
    pids = {agent["pid"] for agent in runs.result["agents"].values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert runs.result["methods"]["bridge"]["payload_bytes"] == SOFT_TOKENS * WIDTH * 2
    sizes = {r["payload_bytes"] for r in runs.predictions("bridge").values()}
    assert sizes == {SOFT_TOKENS * WIDTH * 2}


def test_baselines_and_controls_answer_as_they_must(runs: Runs) -> None:
    result = runs.result["methods"]
    assert result["probe_mean"]["accuracy"] > 0.65  # a single word tells the class
    for name in ("prompt_tuning_blind", "zero_payload"):  # one answer for every row
        assert len({r["predicted"] for r in runs.predictions(name).values()}) == 1
    assert result["shuffled_payload"]["channels"] == {"soft": ROWS, "text": 0}
    assert result["shuffled_payload"]["payload_bytes"] == SOFT_TOKENS * WIDTH * 2
    assert result["label_relay"]["payload_bytes"] == 1
    said, relayed = runs.predictions("sender_direct"), runs.predictions("label_relay")
    answers = {said[row]["predicted"]: record["predicted"] for row, record in relayed.items()}
    for row, record in relayed.items():
        assert record["predicted"] == answers[said[row]["predicted"]]  # the word alone decides


def test_predictions_equal_those_of_single_rows_in_one_process(
    runs: Runs, tiny_llama: Path, tiny_gemma: Path
) -> None:
    import torch

    from agentwire.model.transformers import TransformersBackend
    from agentwire.task.definitions import load_definition
    from agentwire.task.rows import read_jsonl

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    sender, receiver = (
        TransformersBackend.load(tiny.spec(name, folder), lambda stage, fraction: None)
        for name, folder in (("ada", tiny_llama), ("bob", tiny_gemma))
    )
    task = load_definition("movie_snippets").spec()
    bridge = sender.add_bridge(Path(runs.folder, "bridges", runs.trained["bridge"])).fingerprint
    through_bus = {name: runs.predictions(name) for name in METHODS}
    for row, (text, label) in enumerate(read_jsonl(runs.folder / "rows" / "test.jsonl", 2)):
        here = {
            "bridge": receiver.score_soft(sender.encode([text], bridge).payload, task),
            "text_relay": receiver.score_text(sender.relay([text], task).texts, task),
            "receiver_direct": receiver.score_text([text], task),
            "sender_direct": sender.score_text([text], task),
        }
        for name, scored in here.items():
            record = through_bus[name][row]
            assert record["label"] == task.labels[label]
            assert record["predicted"] == task.labels[int(scored.scores[0].argmax())], (name, row)
            expected = dict(zip(task.labels, scored.scores[0].tolist(), strict=True))
            assert record["scores"] == pytest.approx(expected, abs=2e-3), (name, row)
    torch.set_num_threads(before)
