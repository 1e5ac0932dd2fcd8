"""Goals beside what was measured: computed, never written."""

from __future__ import annotations

import pytest
from rendering.aims import Aim, section

AIMS = (
    Aim("latency", "fast", "ms", 11.0, least=False, shape="{:.1f} ms"),
    Aim("rate", "fast", "rate", 2.0),
    Aim("sum", "other", lambda figures: figures["a"] + figures["b"], 0, least=False),
)


def test_what_is_equal_to_the_goal_reaches_it_from_either_side() -> None:
    text = section({"fast": {"figures": {"ms": 11.0, "rate": 2.0}}}, AIMS)
    assert "| latency | at most 11.0 ms | 11.0 ms | reached | fast |" in text
    assert "| rate | at least 2.00 x | 2.00 x | reached | fast |" in text
    assert "sum" not in text


def test_what_lies_on_the_wrong_side_is_missed() -> None:
    records = {
        "fast": {"figures": {"ms": 11.1, "rate": 1.9}},
        "other": {"figures": {"a": 0, "b": 1}},
    }
    assert section(records, AIMS).count("**missed**") == 3


def test_without_its_records_there_is_no_table() -> None:
    assert section({}, AIMS) == ""


def test_a_record_without_the_figure_is_an_error_not_a_gap() -> None:
    with pytest.raises(KeyError, match="rate"):
        section({"fast": {"figures": {"ms": 1.0}}}, AIMS)
