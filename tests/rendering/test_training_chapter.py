"""The chapter of training steps."""

from __future__ import annotations

from typing import Any

from rendering import training
from rendering.document import document


def record(count: str, step: dict[str, Any]) -> dict[str, Any]:
    return {
        "started": "2026-01-02T03:04:05+00:00",
        "label": "random weights: speed only",
        "command": f"python bench/train_step.py --counts {count}",
        "hardware": {"cpu": "some", "gpus": ["two of them"]},
        "versions": {"python": "3"},
        "settings": {
            "sender": "big/a",
            "receiver": "big/b",
            "layer": 16,
            "hidden": 512,
            "soft_tokens": 8,
            "text_tokens": 48,
            "prompt_tokens": 24,
        },
        "figures": {},
        "runs": {
            count: {
                "states": {"rows_per_s": 1245.0, "peak_gib": {"cuda:0": 10.0, "cuda:1": 0.5}},
                "steps": {"16": step},
            }
        },
    }


STEP = {"step_ms_in_a_row": 43.59, "rows_per_s": 367.0, "peak_gib": {"cuda:0": 20.0}}


def test_steps_of_all_records_stand_in_one_table_with_their_label_and_command() -> None:
    records = {"train-step-a": record("1", STEP), "train-step-b": record("2", STEP)}
    text = document(records)
    assert text.count("## Training") == 1
    for count in ("1", "2"):
        assert f"| {count} | 16 | 43.6 | 367 | 10.7 + 0.5 / 21.5 | 1,245 |" in text
        assert f"--counts {count}`" in text
    assert text.count("random weights") == 2 + document({}).count("random weights")


def test_a_step_that_did_not_fit_says_so() -> None:
    error = {"error": "CUDA out of memory", "peak_gib": {}}
    text = training.chapter({"train-step": record("1", error)})
    assert "| 1 | 16 | CUDA out of memory | - | 10.7 + 0.5 / - | 1,245 |" in text


def test_other_records_are_not_taken() -> None:
    assert training.owns("train-step-h100x1", record("1", STEP))
    assert not training.owns("speed", record("1", STEP))
