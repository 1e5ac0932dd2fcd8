"""Which records become which chapter of docs/results.md."""

from __future__ import annotations

import pytest
from rendering.document import document

FIGURES = {
    "hardware": {"cpu": "some", "gpus": []},
    "versions": {"python": "3"},
    "started": "2026-01-02T03:04:05+00:00",
    "command": "python bench/x.py",
    "settings": {"rows": 3},
    "figures": {"ratio": 1.23456},
}


def test_a_record_of_figures_shows_its_machine_command_and_date() -> None:
    text = document({"x-cpu": FIGURES})
    assert "## x-cpu" in text
    assert "| ratio | 1.235 |" in text
    for said in ("hardware: cpu some", "python 3", "2026-01-02", "`python bench/x.py`"):
        assert said in text


def test_without_records_there_is_only_the_head() -> None:
    assert document({}).count("\n## ") == 0


def test_a_record_that_no_chapter_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"odd\.json"):
        document({"odd": {"something": 1}})


def test_a_record_without_its_command_is_refused() -> None:
    with pytest.raises(KeyError, match="command"):
        document({"x": {k: v for k, v in FIGURES.items() if k != "command"}})


def test_every_chapter_is_in_the_list_of_contents_and_its_link_is_its_heading() -> None:
    text = document(
        {"x-cpu": FIGURES, "overhead-cpu": FIGURES | {"figures": {"ratio_in_flight_2": 1.0}}}
    )
    title = "Two processes and a bus against one process (overhead-cpu)"
    assert f"- [{title}](#two-processes-and-a-bus-against-one-process-overhead-cpu)" in text
    assert f"\n## {title}\n" in text
    assert "- [x-cpu](#x-cpu)" in text
    assert text.count("\n## ") == text.count("\n- [")
