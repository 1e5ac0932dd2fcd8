"""The accuracy chapter: every figure from the record, winners named whoever they are."""

from __future__ import annotations

from typing import Any

from rendering import accuracy
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
    assert "| SST-2 | 0.876 | 0.860 | +0.017 | reached |" in text
    record = make_record()
    record["figures"]["sst2.gap.bridge.difference"] = 0.0421
    assert "| +0.042 | missed by 0.012 |" in document({"accuracy-small": record})


def probes(**differences: float) -> list[dict[str, Any]]:
    return [comparison(task, "probe_mean", value, 0.01) for task, value in differences.items()]


def test_the_goals_against_probes_are_computed() -> None:
    won = make_record(comparisons=probes(sst2=0.04, trec=0.03, banking77=0.02, ag_news=-0.009))
    text = document({"accuracy-small": won})
    assert "on 3 tasks: reached, on 3 of 4 (SST-2, TREC and Banking77)." in text
    assert "below a probe: reached; the least of all differences is -0.009 (AG News" in text
    lost = make_record(comparisons=probes(sst2=0.04, trec=0.019, banking77=0.02, ag_news=-0.025))
    text = document({"accuracy-small": lost})
    assert "on 3 tasks: missed, on 2 of 4 (SST-2 and Banking77)." in text
    assert "below a probe: missed by 0.015; the least of all differences is -0.025" in text


def test_reverse_is_held_against_each_probe_of_the_senders_own_states() -> None:
    entry = {**comparison("sst2", "probe_mean", -0.004, 0.01), "direction": "reverse"}
    text = document({"accuracy-small": make_record(comparisons=[entry])})
    said = "reverse: at or above linear probe, of the sender's own states, everywhere: "
    assert f"{said}missed on SST-2 (-0.004)." in text


def test_a_payload_that_says_nothing_and_helps_is_named() -> None:
    record = make_record()
    low = "sst2.forward.zero_payload.wilson95_low"
    record["figures"][low] = 0.48
    said = "forward: zero payload no better than the largest class: "
    assert f"{said}reached (1 task)." in document({"accuracy-small": record})
    record["figures"][low] = 0.52
    assert f"{said}missed on SST-2 (1 task)." in document({"accuracy-small": record})


def test_a_baseline_without_a_paired_test_is_named() -> None:
    record = make_record(comparisons=[comparison("sst2", "probe_mean", 0.05, 0.01)])
    text = document({"accuracy-small": record})
    assert "above 1 of 1 baselines measured there. No paired test: LoRA." in text


RELAY = {
    "bridge": {"title": "bridge", "kind": "bridge"},
    "text_relay": {"title": "text relay", "kind": "baseline", "about": "reads the summary"},
    "lora_relay": {"title": "text relay, LoRA", "kind": "baseline", "about": "trained on it"},
}


def test_a_receiver_trained_on_the_relay_has_a_chapter_that_says_who_wins() -> None:
    won, lost = (comparison("sst2", "lora_relay", value, 0.01) for value in (0.1, -0.03))
    record = make_record(methods=RELAY, comparisons=[won, {**lost, "direction": "reverse"}])
    record["figures"] |= {
        "sst2.forward.lora_relay.mean": 0.776,
        "sst2.reverse.lora_relay.mean": 0.89,
        "sst2.forward.text_relay.mean": 0.6,
    }
    text = document({"accuracy-small": record})
    assert "| SST-2, forward | 0.876 | 0.600 | 0.776 | +0.100 (+0.090 .. +0.110) |" in text
    assert "| SST-2, reverse | 0.860 | – | 0.890 | -0.030 (-0.040 .. -0.020) |" in text
    assert "The bridge is above text relay, LoRA on SST-2 forward." in text
    assert "**text relay, LoRA beats the bridge on SST-2 reverse.**" in text
    assert "reverse: above text relay, LoRA on every task: missed, on 0 of 1; **beaten on" in text
    assert "forward: above text relay, LoRA on every task: reached, on 1 of 1." in text
    record["figures"]["trec.forward.bridge.mean"] = 0.9
    said = "forward: above text relay, LoRA on every task: open, on 1 of 1; not measured on TREC."
    assert said in document({"accuracy-small": record})
    assert "with a receiver trained to read it" not in document({"a": make_record()})


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
