"""The chapter of several senders: what stands in its table, and what it says of it."""

from __future__ import annotations

from typing import Any

from rendering.document import document

READS = {
    "halves": [["a", "first half"], ["b", "second half"]],
    "first_alone": [["a", "first half"]],
}


def run(method: str, what: str, accuracy: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"task": "sst2", "method": method, "true_texts": what, "accuracy": accuracy, "n": 800,
            "seed": seed, **more}  # fmt: skip


def record(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "fan_in",
        "started": "2026-01-02",
        "command": "python bench/fan_in.py work",
        "hardware": "some GPU",
        "versions": {"python": "3"},
        "models": {"senders": ["a", "b"], "receiver": "b", "stand_ins": "a for big",
                   "layers": {"a": 15, "b": 10}, "soft_tokens": 8},
        "kinds": {name: {"about": name, "reads": reads} for name, reads in READS.items()},
        "tasks": {"sst2": {"rows": 800, "split": "validation", "classes": 2, "majority": 0.509}},
        "figures": {},
        "runs": list(runs),
    }  # fmt: skip


def test_a_set_stands_beside_the_bridges_of_its_senders() -> None:
    text = document(
        {
            "fan-in-small": record(
                run("halves", "all", 0.87, held_out_accuracy=0.85),
                run("halves", "all", 0.89, 1, held_out_accuracy=0.87),
                run("halves", "only 1", 0.69),
                run("halves", "only 2", 0.66),
                run("first_alone", "all", 0.78, steps_done=250, hyperparameters={"steps": 1500}),
                {"task": "sst2", "method": "receiver_direct", "piece": "whole", "accuracy": 0.64},
            )
        }
    )
    assert "## Several senders, one receiver" in text and "**stand-ins**: a for big" in text
    assert "### SST-2: 800 rows of validation, 2 classes (largest: 0.509)" in text
    row = next(line for line in text.splitlines() if line.startswith("| set of two"))
    assert "first: first half; second: second half" in row
    assert "0.880 ± 0.014 (2 seeds) | 0.860 ± 0.014 (2 seeds) | 0.690 | 0.660" in row
    assert "| receiver alone, untrained | whole | 0.640 |" in text
    assert "both senders are above the first one's own bridge on the same texts (+0.100" in text
    assert "- Ended by the clock after 250 of 1,500 steps: first_alone." in text


def test_what_cannot_be_told_apart_is_said_so() -> None:
    text = document({"x": record(run("halves", "all", 0.8), run("first_alone", "all", 0.79))})
    assert "both senders are not told apart from the first one's own bridge" in text
