"""README's part that is made from the accuracy record."""

from __future__ import annotations

import pytest
from rendering import readme
from test_accuracy import comparison, make_record


def test_the_best_baseline_stands_beside_the_bridge_and_is_bold_where_it_wins() -> None:
    text = readme.block(make_record())
    assert "| SST-2 | 872 | 0.876 | **LoRA 0.910** | 0.860 | – |" in text
    assert "- beats the bridge, forward: SST-2: LoRA (0.910)." in text
    assert "Zero and shuffled payloads stay at chance." in text
    won = make_record(comparisons=[comparison("sst2", "lora", 0.02, 0.01)])
    text = readme.block(won)
    assert "| LoRA 0.910 |" in text
    assert "beats the bridge, forward" not in text


def test_a_baseline_that_cannot_be_told_apart_is_named() -> None:
    text = readme.block(make_record(comparisons=[comparison("sst2", "probe_mean", 0.0, 0.01)]))
    assert "No baseline that was measured beats the bridge." in text
    assert "- not told apart from it, forward: SST-2: linear probe (0.840)." in text


def test_a_control_above_chance_is_named() -> None:
    record = make_record()
    record["figures"]["sst2.forward.zero_payload.wilson95_low"] = 0.9
    assert "do better than chance on SST-2." in readme.block(record)


def test_what_was_measured_in_places_only_and_the_universal_bridge() -> None:
    record = make_record()
    record["figures"]["sst2.reverse.probe_mean.mean"] = 0.8
    record["figures"]["universal.sst2.forward.mean"] = 0.87
    text = readme.block(record)
    assert "Measured on some of the tasks and directions alone: 1 of 2 (LoRA)." in text
    assert "the question asked of the receiver alone: SST-2 0.870." in text
    assert "never saw" not in text
    runs = [
        {"task": "big_news", "seen": False, "accuracy": value, "majority": 0.4}
        for value in (0.5, 0.6)
    ]
    text = readme.block({**record, "studies": {"universal": runs}})
    assert "On tasks that it never saw: big news 0.550 (largest class 0.400)." in text


def test_only_what_stands_between_the_markers_is_renewed() -> None:
    old = f"before\n{readme.BEGIN}\nstale\n{readme.END}\nafter\n"
    new = readme.renewed(old, {"x": {"figures": {}}, "accuracy-small": make_record()})
    assert new.startswith(f"before\n{readme.BEGIN}\n")
    assert new.endswith(f"{readme.END}\nafter\n")
    assert "stale" not in new
    with pytest.raises(ValueError, match="once each"):
        readme.renewed("no markers", {"accuracy-small": make_record()})
