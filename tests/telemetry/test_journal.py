"""The journal: whole lines, in order, readable after a crash."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest

from agentwire.errors import InputError
from agentwire.telemetry.journal import (
    ADMITTED,
    FINISHED,
    Journal,
    drop_torn_line,
    read_lines,
    unfinished,
)


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:
        journal.write("run_started", run_id="x")
        journal.write("method_started", method="bridge", where=Path("/a"))
    events = list(read_lines(path))
    assert [e["event"] for e in events] == ["run_started", "method_started"]
    assert [e["seq"] for e in events] == [0, 1]
    assert events[1]["where"] == "/a"
    assert events[0]["ms"] <= events[1]["ms"]
    assert events[0]["time"].endswith("Z")


def test_a_resumed_run_continues_the_numbering(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for name in ("first", "second"):
        with closing(Journal(path)) as journal:
            journal.write(name)
    assert [(e["seq"], e["event"]) for e in read_lines(path)] == [(0, "first"), (1, "second")]


def test_a_torn_last_line_is_skipped_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:
        journal.write("whole")
    with path.open("a") as file:
        file.write('{"seq": 1, "ev')
    torn: list[str] = []
    assert [e["event"] for e in read_lines(path, torn.append)] == ["whole"]
    assert torn == [f"{path}:2"]
    with closing(Journal(path)) as journal:
        journal.write("next")
    assert [(e["seq"], e["event"]) for e in read_lines(path)] == [(0, "whole"), (1, "next")]


@pytest.mark.parametrize("junk", ["nonsense", "[1]", "12", '{"seq": 1,', "[" * 5_000])
@pytest.mark.parametrize("after", ["", '{"seq": 1, "event": "b"}\n'], ids=["last", "middle"])
def test_a_whole_line_that_is_not_an_object_is_an_error(
    tmp_path: Path, junk: str, after: str
) -> None:
    """A kill can only leave a last line without its end."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"seq": 0, "event": "a"}\n' + junk + "\n" + after)
    with pytest.raises(InputError, match=r"journal\.jsonl:2: not a JSON object"):
        list(read_lines(path))
    with pytest.raises(InputError, match=":2"):
        Journal(path)


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:

        def write(name: int) -> None:
            for i in range(50):
                journal.write("event", thread=name, i=i, filling="x" * 200)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(200))


def test_writing_after_close_does_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.close()
    journal.write("late")
    journal.close()
    assert list(read_lines(tmp_path / "journal.jsonl")) == []


def test_unfinished_lists_requests_without_an_outcome(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:
        journal.write(ADMITTED, request_ids=["a", "b"])
        journal.write(ADMITTED, request_ids=["c"])
        journal.write(FINISHED, request_ids=["b"])
        journal.write("other")
    assert unfinished(read_lines(path)) == ["a", "c"]


def test_only_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    drop_torn_line(path)
    assert not path.exists()
    path.write_bytes(b"{}\n")
    drop_torn_line(path)
    assert path.read_bytes() == b"{}\n"
    path.write_bytes(b"{")
    drop_torn_line(path)
    assert path.read_bytes() == b""
