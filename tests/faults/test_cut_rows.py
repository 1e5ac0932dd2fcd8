"""A run counts the rows that a method does not read to their ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import agentwire

from agentwire.cli.app import main
from agentwire.evaluation.predictions import problem_of, record_of
from agentwire.runtime.reply import Reply
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.integration

LONG = "a warm film " * 230  # more than 512 tokens, fewer than the models' 1,024
HUGE = "a warm film " * 600
BRIDGE_READS = ("probe_mean", "probe_attention", "random_sender")  # 512 tokens
MODEL_READS = ("receiver_direct", "sender_direct", "few_shot", "lora", "prompt_tuning",
               "label_relay", "lora_relay")  # fmt: skip
READ_NOTHING = ("prompt_tuning_blind", "zero_payload")


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path
) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("cut")
    tiny.write_rows(folder / "rows" / "train.jsonl", 60, seed=1)
    rows = [*tiny.sentences(3, 2), (LONG, 0), (HUGE, 1)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / "rows" / "test.jsonl").write_text("\n".join(lines) + "\n")
    scenario = {
        "name": "tiny",
        "agents": {
            "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
            "bob": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
        },
        "wires": [{"from": "ada", "to": "bob", "soft_tokens": 2}],
        "task": {"dataset": "movie_snippets", "path": "rows"},
        "methods": [*BRIDGE_READS, *MODEL_READS, *READ_NOTHING],
        "train": {"steps": 2, "batch_size": 8, "held_out": 16, "evaluate_every": 1, "hidden": 16,
                  "heads": 2},
    }  # fmt: skip
    (folder / "scenario.yaml").write_text(json.dumps(scenario))
    done = agentwire(folder, "run", "scenario.yaml")
    return folder, json.loads(next(folder.glob("runs/*/result.json")).read_text()), done.stdout


def test_a_run_counts_texts_that_are_cut(run: tuple[Path, dict[str, Any], str]) -> None:
    methods = run[1]["methods"]
    cut = {name: method["cut"] for name, method in methods.items()}
    assert cut == {
        **dict.fromkeys(BRIDGE_READS, 2), **dict.fromkeys(MODEL_READS, 1),
        **dict.fromkeys(READ_NOTHING, 0),
    }  # fmt: skip
    assert all(method["errors"] == {} for method in methods.values())
    assert methods["probe_mean"]["reasons"] == {"too_long": 2}


def test_the_report_shows_them(
    run: tuple[Path, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result, stdout = run
    with pytest.raises(SystemExit):
        main(["report", str(folder / "runs" / result["run_id"])])
    for shown in (stdout, capsys.readouterr().out):
        words = " ".join(shown.split())
        assert "texts not read to their ends: probe, mean 2 of 5, probe, attention 2 of 5" in words
        assert "blind 0 of" not in words


def test_predictions_of_older_runs_are_read() -> None:
    reply = Reply(
        "0" * 32, "a", 0, {"a": 0.0}, None, Channel.TEXT, "too_long", {}, 1.0, 3, unread=7
    )
    record = record_of("lora", 0, "a", reply)
    assert record["unread"] == 7
    assert problem_of(record, {0: "a"}, ["a"]) == ""
    assert "unread" in problem_of(record | {"unread": -1}, {0: "a"}, ["a"])
    del record["unread"]
    assert problem_of(record, {0: "a"}, ["a"]) == ""
