"""Counts of an agent in a file."""

from __future__ import annotations

from pathlib import Path

from agentwire.telemetry.counts import read_counts, write_counts


def test_counts_survive_a_round_trip(tmp_path: Path) -> None:
    write_counts(tmp_path / "ada.json", {"encode": {1: 5, 16: 200}})
    write_counts(tmp_path / "bob.json", {})
    (tmp_path / "bob.log").write_text("a log")
    assert read_counts(tmp_path) == {"ada": {"encode": {1: 5, 16: 200}}, "bob": {}}


def test_unreadable_counts_are_ignored(tmp_path: Path) -> None:
    write_counts(tmp_path / "nowhere" / "ada.json", {"encode": {1: 5}})
    for number, text in enumerate(('{"batches": {"encode": {"1"', "[]", '{"batches": [1]}', "{}")):
        (tmp_path / f"{number}.json").write_text(text)
    assert read_counts(tmp_path) == {}
    assert read_counts(tmp_path / "nowhere") == {}
