"""The chapter of long runs: each beside its goal, and a missed one is said to be missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rendering import endurance
from rendering.document import read_records
from rendering.markdown import Record

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


@pytest.fixture
def records() -> dict[str, Record]:
    return {n: record for n, record in read_records(RESULTS).items() if endurance.owns(n, record)}


def changed(record: Record, part: str, **values: Any) -> Record:
    return {**record, part: {**record[part], **values}}


def test_load_soak_and_fuzzing_are_there(records: dict[str, Record]) -> None:
    text = endurance.chapter(records)
    for title in ("## Twice the load: load-cpu", "## Soak: soak-cpu", "## Fuzzing: fuzz"):
        assert text.count(title) == 1
    for record in records.values():
        assert f"`{record['command']}`" in text


@pytest.mark.parametrize(
    ("name", "part", "good", "bad"),
    [
        ("load-cpu", "figures", {"goodput_of_capacity": 0.9}, {"goodput_of_capacity": 0.899}),
        ("load-cpu", "settings", {"minutes": 5.0}, {"minutes": 4.0}),
        ("soak-cpu", "figures", {"minutes": 30.0}, {"minutes": 29.0, "messages": 999_999}),
        ("fuzz", "settings", {"minutes": 10.0}, {"minutes": 9.0}),
    ],
)
def test_a_goal_that_is_missed_is_said_to_be(
    records: dict[str, Record], name: str, part: str, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    reached = endurance.chapter({name: changed(records[name], part, **good)})
    missed = endurance.chapter({name: changed(records[name], part, **bad)})
    assert missed.count("**missed**") == reached.count("**missed**") + 1


def test_what_was_lost_is_shown(records: dict[str, Record]) -> None:
    text = endurance.chapter({"soak-cpu": changed(records["soak-cpu"], "figures", lost=7)})
    assert "7 lost" in text
