"""The accuracy chapter: every figure from the record, winners named whoever they are."""

from __future__ import annotations

from typing import Any

import pytest
from rendering import accuracy, studies
from rendering.document import document


def comparison(task: str, second: str, difference: float, half: float) -> dict[str, Any]:
    return {
        "task": task,
        "direction": "forward",
        "first": "bridge",
        "second": second,
        "difference": difference,
        "low95": difference - half,
        "high95": difference + half,
        "mcnemar": {"only_first": 3, "only_second": 1, "p_value": 0.0001},
    }


def make_record(**changes: Any) -> dict[str, Any]:
    figures = {
        "sst2.forward.bridge.mean": 0.876,
        "sst2.forward.bridge.std": 0.004,
        "sst2.forward.bridge.seeds": 3,
        "sst2.forward.bridge.wilson95_low": 0.853,
        "sst2.forward.bridge.wilson95_high": 0.897,
        "sst2.forward.probe_mean.mean": 0.84,
        "sst2.forward.lora.mean": 0.91,
        "sst2.forward.zero_payload.mean": 0.99,
        "sst2.reverse.bridge.mean": 0.86,
        "sst2.gap.bridge.difference": 0.0168,
    }
    return {
        "kind": "accuracy",
        "figures": figures,
        "tasks": {
            "sst2": {
                "split": "validation",
                "rows": 872,
                "classes": 2,
                "majority": 0.509,
                "train_split_rows": 67349,
                "held_out_rows": 1000,
            }
        },
        "directions": {
            "forward": {"sender": "small-a", "receiver": "small-b"},
            "reverse": {"sender": "small-b", "receiver": "small-a"},
        },
        "methods": {
            "bridge": {"title": "bridge", "kind": "bridge"},
            "probe_mean": {"title": "linear probe", "kind": "baseline"},
            "lora": {"title": "LoRA", "kind": "baseline"},
            "zero_payload": {"title": "zero payload", "kind": "control"},
        },
        "runs": [],
        "comparisons": [
            comparison("sst2", "probe_mean", 0.0365, 0.01),
            comparison("sst2", "lora", -0.0335, 0.01),
        ],
        "studies": {},
        "shipped": {},
        "started": "2026-11-25T14:00:00+00:00",
        "command": "python bench/accuracy.py record",
        "hardware": {"gpus": "some GPU"},
        "versions": {"python": "3"},
        **changes,
    }


def lines_with(text: str, words: str) -> list[str]:
    return [line for line in text.splitlines() if words in line]


def test_the_best_is_bold_whoever_it_is_and_a_control_never_is() -> None:
    text = document({"accuracy-small": make_record()})
    assert "| LoRA | baseline | **0.910** |" in text
    assert "| bridge | bridge | 0.876 ± 0.004 (0.853 .. 0.897) |" in text
    assert "| zero payload | control | 0.990 |" in text


def test_where_a_baseline_wins_the_table_says_so() -> None:
    text = document({"accuracy-small": make_record()})
    (lora,) = lines_with(text, "| LoRA | **-0.034")
    assert "p < 0.001" in lora
    (probe,) = lines_with(text, "| linear probe | +0.03")
    assert "**" not in probe
    assert (
        "- SST-2: the bridge is beaten by LoRA. It is above 1 of 2 baselines measured there."
        in text
    )


def test_a_baseline_that_was_not_measured_there_is_named() -> None:
    record = make_record(comparisons=[comparison("sst2", "probe_mean", 0.05, 0.01)])
    del record["figures"]["sst2.forward.lora.mean"]
    text = document({"accuracy-small": record})
    assert "above 1 of 1 baselines measured there (not measured there: LoRA)." in text


def test_an_interval_around_zero_is_no_victory() -> None:
    record = make_record(comparisons=[comparison("sst2", "probe_mean", 0.004, 0.01)])
    text = document({"accuracy-small": record})
    assert lines_with(text, "| linear probe | *+0.004")
    assert "not told apart from linear probe. It is above 0 of 1 baselines measured there." in text


def test_the_bridge_wins_only_where_both_tests_say_so() -> None:
    entry = comparison("sst2", "probe_mean", 0.011, 0.0108)
    doubtful = {**entry, "mcnemar": {"only_first": 3, "only_second": 1, "p_value": 0.177}}
    assert accuracy.outcome(entry) == "bridge"
    assert accuracy.outcome(doubtful) == ""
    lost = {**doubtful, "difference": -0.011, "low95": -0.02, "high95": -0.001}
    assert accuracy.outcome(lost) == "baseline"


def test_goals_are_missed_by_a_number() -> None:
    text = document({"accuracy-small": make_record()})
    assert "| SST-2 | 0.88 | 0.876 | missed by 0.004 |" in text
    assert "| SST-2 | 0.876 | 0.860 | +0.017 |" in text


def test_the_papers_figures_are_marked_as_theirs() -> None:
    text = document({"accuracy-small": make_record()})
    assert "(theirs, not measured here)" in text
    assert "188 thousand parameters cannot be" in text


def test_its_hardware_command_and_date_stand_beside_it() -> None:
    text = document({"accuracy-small": make_record()})
    for said in (
        "some GPU",
        "`python bench/accuracy.py record`",
        "2026-11-25",
        "small-a -> small-b",
    ):
        assert said in text


def test_sections_appear_only_where_the_record_has_them() -> None:
    text = accuracy.chapter({"a": make_record()})
    for absent in ("Passkey", "How many soft tokens", "universal", "Not measured", "that ship"):
        assert absent not in text
    assert "reverse" in text.lower()
    bare = make_record(figures={}, comparisons=[])
    assert "### Forward" not in accuracy.chapter({"a": bare})


def soft_token_runs(papers: dict[int, float], converged: dict[int, float]) -> list[dict[str, Any]]:
    budgets = {"papers": papers, "converged": converged}
    return [
        {
            "soft_tokens": m,
            "budget": budget,
            "accuracy": value,
            "hyperparameters": {"learning_rate": 0.001},
        }
        for budget, values in budgets.items()
        for m, value in values.items()
    ]


@pytest.mark.parametrize(
    ("papers", "converged", "said"),
    [
        ({16: 0.5, 128: 0.5}, {16: 0.8, 128: 0.8}, "does not show here"),
        ({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.79}, "slow optimisation of larger M, not a limit"),
        ({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.75}, "more than half of the drop"),
        ({16: 0.5, 128: 0.2}, {16: 0.8, 128: 0.5}, "Most of the drop stays"),
    ],
)
def test_what_the_soft_token_data_support(
    papers: dict[int, float], converged: dict[int, float], said: str
) -> None:
    runs = soft_token_runs(papers, converged)
    text = accuracy.chapter({"a": make_record(studies={"soft_tokens": runs})})
    assert said in text
    assert "| 16 | 0.500 | 0.800 | 0.001 | 0.215 |" in text


def test_the_other_studies_show_their_figures() -> None:
    held = {"task": "sst2", "direction": "forward", "held_out_accuracy": 0.812, "loss": 0.4}
    found = {
        "layers": [{**held, "layer": 10, "probe_mean_held_out": 0.789}],
        "sensitivity": [{**held, "name": "x", "changes": {"learning_rate": 1e-4}}],
        "ablation": [{**held, "name": "no clamp", "changes": {}}],
        "passkey": [
            {
                "soft_tokens": 16,
                "seed": seed,
                "digit_accuracy": 0.5 + seed / 10,
                "exact_match": 0.1,
                "by_place": [0.9, 0.1],
            }
            for seed in (0, 1)
        ],
        "universal": [
            {"task": "sst2", "direction": "forward", "accuracy": 0.85, "seen": True},
            {"task": "subj", "direction": "forward", "accuracy": 0.61, "seen": False},
        ],
    }
    text = "\n\n".join(studies.sections(make_record(studies=found)))
    assert "| 10 | 0.812 | 0.789 |" in text
    assert "| sst2 | forward | learning_rate 0.0001 | 0.812 | 0.400 |" in text
    assert "| sst2 | forward | no clamp | 0.812 | 0.400 |" in text
    assert (
        "| 16 | 0.550 ± 0.071 (2 seeds) | 0.100 ± 0.000 (2 seeds) | 0.900, 0.100 | 0.234 |" in text
    )
    assert "| sst2 | yes | 0.850 | 0.876 |" in text
    assert "| subj | **never** | 0.610 | – |" in text


def test_what_was_not_measured_is_listed() -> None:
    missed = [{"job": name, "why": "not run"} for name in ("lora.trec.forward", "sweep", "sweep.x")]
    text = accuracy.chapter({"a": make_record(missed=missed)})
    assert "- not run: lora (trec.forward), sweep, sweep (x)" in text


def test_chosen_settings_stand_beside_the_figures() -> None:
    same = {"task": "sst2", "direction": "forward", "layer": 20}
    sweep = {**same, "job": "sweep.sst2.forward", "changes": {"learning_rate": 1e-3}}
    bridge = {**same, "job": "bridge.sst2.forward", "winner": "changed"}
    text = accuracy.chapter({"a": make_record(choices=[sweep, bridge])})
    assert text.count("| SST-2 | forward | 20 | learning_rate 0.001 |") == 1
    text = accuracy.chapter({"a": make_record(choices=[sweep, {**bridge, "winner": "base"}])})
    assert "| SST-2 | forward | 20 | nothing changed |" in text
