"""Two tiny language models, one bus: trained, run through real processes, and checked in this one.

What a user does with large models (`agentwire train`, `agentwire run --json`), and then the same
pipeline row by row without processes and bus: every prediction must be the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["bridge", "text_relay", "receiver_direct", "sender_direct"]
RIVALS = ["probe_mean", "prompt_tuning_blind", "zero_payload", "shuffled_payload", "label_relay"]
ROWS = 48
RIVALS_RUN = 0
"""Stands for the run of the rivals where others have their batch size."""
SOFT_TOKENS, WIDTH = 4, 48


def agentwire(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command line in a process of its own; what it printed as JSON."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AGENTWIRE_HOME": str(folder / "home")}
    for name in ("AGENTWIRE_DATA", "AGENTWIRE_BRIDGES"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "agentwire", *arguments, "--json"],
        cwd=folder,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@dataclass(frozen=True)
class Runs:
    """What the commands left: the trained bridge, and a run at each batch size."""

    folder: Path
    trained: dict[str, Any]
    results: dict[int, dict[str, Any]]

    def predictions(self, batch: int, method: str) -> dict[int, dict[str, Any]]:
        """Records of one method by row."""
        run = self.folder / "runs" / self.results[batch]["run_id"]
        lines = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
        return {r["row"]: r for r in lines if r["method"] == method}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path
) -> Iterator[Runs]:
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
        "methods": METHODS,
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
    for batch in (1, 16):
        text = json.dumps({**scenario, "batch_size": batch})
        (folder / f"batch{batch}.yaml").write_text(text)
    trained = agentwire(folder, "train", "batch16.yaml")
    results = {
        RIVALS_RUN: agentwire(folder, "run", "batch16.yaml", "--methods", ",".join(RIVALS)),
        16: agentwire(folder, "run", "batch16.yaml"),
        1: agentwire(folder, "run", "batch1.yaml", "--methods", "bridge,receiver_direct"),
    }
    yield Runs(folder, trained, results)


def test_training_leaves_a_verified_bridge_where_runs_look_for_it(runs: Runs) -> None:
    from agentwire.bridge.store import verify

    name = "tiny-llama--tiny-gemma--movie_snippets"
    assert runs.trained["bridge"] == name
    card = verify(runs.folder / "bridges" / name)
    config = json.loads(
        (runs.folder / "runs" / runs.results[16]["run_id"] / "config.json").read_text()
    )
    assert config["wires"]["ada->bob"]["weights_sha256"] == card.weights_sha256


def test_every_row_has_one_answer_by_every_method(runs: Runs) -> None:
    result = runs.results[16]
    assert list(result["methods"]) == METHODS
    for name, method in result["methods"].items():
        assert method["n"] == ROWS, name
        assert sorted(runs.predictions(16, name)) == list(range(ROWS))
    assert result["methods"]["bridge"]["channels"] == {"soft": ROWS, "text": 0}
    assert result["methods"]["bridge"]["reasons"] == {}


def test_each_payload_crossed_between_two_processes(runs: Runs) -> None:
    for result in (runs.results[1], runs.results[16]):
        pids = {agent["pid"] for agent in result["agents"].values()}
        assert len(pids) == 2 and os.getpid() not in pids
        assert result["methods"]["bridge"]["payload_bytes"] == SOFT_TOKENS * WIDTH * 2
    sizes = {r["payload_bytes"] for r in runs.predictions(16, "bridge").values()}
    assert sizes == {SOFT_TOKENS * WIDTH * 2}


def test_rivals_and_controls_answer_the_same_rows(runs: Runs) -> None:
    result = runs.results[RIVALS_RUN]["methods"]
    assert list(result) == RIVALS
    for name, method in result.items():
        assert (method["n"], method["errors"]) == (ROWS, {}), name
        assert sorted(runs.predictions(RIVALS_RUN, name)) == list(range(ROWS))
    assert result["probe_mean"]["accuracy"] > 0.65  # single words give the class away
    for name in ("prompt_tuning_blind", "zero_payload"):  # one answer for every row
        assert len({r["predicted"] for r in runs.predictions(RIVALS_RUN, name).values()}) == 1
    assert result["shuffled_payload"]["channels"] == {"soft": ROWS, "text": 0}
    assert result["shuffled_payload"]["payload_bytes"] == SOFT_TOKENS * WIDTH * 2
    assert result["label_relay"]["payload_bytes"] == 1
    said = runs.predictions(16, "sender_direct")
    answer = {said[row]["predicted"]: r["predicted"]
              for row, r in runs.predictions(RIVALS_RUN, "label_relay").items()}  # fmt: skip
    for row, record in runs.predictions(RIVALS_RUN, "label_relay").items():
        assert record["predicted"] == answer[said[row]["predicted"]]  # the word alone decides


def test_predictions_do_not_depend_on_the_batch(runs: Runs) -> None:
    for method in ("bridge", "receiver_direct"):
        single, batched = runs.predictions(1, method), runs.predictions(16, method)
        for row in range(ROWS):
            assert single[row]["predicted"] == batched[row]["predicted"], (method, row)
            assert single[row]["scores"] == pytest.approx(batched[row]["scores"], abs=2e-3)


def test_predictions_are_those_of_the_same_pipeline_in_one_process(
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
    through_bus = {name: runs.predictions(16, name) for name in METHODS}
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
