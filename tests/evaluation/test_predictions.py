"""The choice of rows, and the file that a resumed run reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.evaluation.predictions import Predictions, choose_rows, record_of
from agentwire.runtime.reply import Reply
from agentwire.wire.messages import Channel

LABELS, WORDS = {1: "bad", 2: "bad", 3: "bad", 4: "good", 5: "good"}, ("bad", "good")
REPLY = Reply(
    request_id="ab" * 16,
    label="good",
    label_index=1,
    scores={"bad": -2.0, "good": -0.145},
    text=None,
    channel=Channel.SOFT,
    reason="",
    stages={"encode": 3.0, "wire": 1.0},
    latency_ms=4.0,
    payload_bytes=256,
)


def test_a_smaller_limit_is_a_subset_of_a_larger_one() -> None:
    assert choose_rows(1000, 50, 0) == choose_rows(1000, 200, 0)[:50]
    assert sorted(choose_rows(1000, 0, 0)) == list(range(1000))
    assert choose_rows(3, 200, 0) == choose_rows(3, 0, 0)


def test_another_seed_takes_other_rows() -> None:
    assert choose_rows(1000, 50, 0) != choose_rows(1000, 50, 1)


def test_the_choice_never_changes() -> None:
    assert choose_rows(100, 5, 0) == [87, 46, 15, 44, 99]


def test_records_come_back_and_are_not_asked_again(tmp_path: Path) -> None:
    first = Predictions(tmp_path, LABELS, WORDS)
    failed = RequestError(NackCode.DEADLINE, "")
    first.add([record_of("bridge", 4, "good", REPLY), record_of("bridge", 2, "bad", failed)])
    first.close()
    second = Predictions(tmp_path, LABELS, WORDS)
    assert second.missing("bridge", [1, 2, 3, 4]) == [1, 3]
    assert second.missing("text_relay", [1, 2]) == [1, 2]
    assert [r["row"] for r in second.of("bridge")] == [4, 2]
    assert second.of("bridge")[0]["predicted"] == "good"
    assert second.of("bridge")[1]["error"] == "deadline"
    second.add([record_of("bridge", 4, "good", REPLY)])
    second.close()
    assert len(second.path.read_text().splitlines()) == 2


def test_a_cut_line_is_asked_again(tmp_path: Path) -> None:
    first = Predictions(tmp_path, LABELS, WORDS)
    first.add([record_of("bridge", 4, "good", REPLY)])
    first.close()
    with first.path.open("a") as file:
        file.write('{"method": "bridge", "row": 5, "pre')
    second = Predictions(tmp_path, LABELS, WORDS)
    assert second.missing("bridge", [4, 5]) == [5]
    second.add([record_of("bridge", 5, "good", replace(REPLY, request_id="cd" * 16))])
    second.close()
    third = Predictions(tmp_path, LABELS, WORDS)
    assert third.missing("bridge", [4, 5]) == []
    third.close()


def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ScenarioError, match="jsonl:1: method"):
        Predictions(tmp_path, LABELS, WORDS)
