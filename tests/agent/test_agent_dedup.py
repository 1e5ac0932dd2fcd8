"""Dedup: a request is computed once, and its memory is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwire.agent.replies import Dedup, Lookup, Seen
from agentwire.errors import LocalProtocolError

A, B, C = (bytes([value]) * 16 for value in range(3))


def test_a_request_is_new_then_in_progress_then_done() -> None:
    seen: Dedup[bytes, str] = Dedup()
    assert seen.begin(A) == Lookup(Seen.NEW)
    assert seen.begin(A) == Lookup(Seen.IN_PROGRESS)
    seen.finish(A, "positive", 8)
    assert seen.begin(A) == Lookup(Seen.DONE, "positive")
    assert (len(seen), seen.in_progress, seen.reply_bytes) == (1, 0, 8)


def test_a_forgotten_request_may_be_tried_again() -> None:
    seen: Dedup[bytes, str] = Dedup()
    seen.begin(A)
    seen.forget(A)
    assert seen.begin(A).seen is Seen.NEW
    seen.finish(A, "x", 5)
    seen.forget(A)
    assert (seen.begin(A).seen, seen.reply_bytes) == (Seen.NEW, 0)
    seen.forget(B)


def test_the_least_recently_used_reply_is_dropped_first() -> None:
    seen: Dedup[bytes, str] = Dedup(replies=2)
    for key in (A, B):
        seen.begin(key)
        seen.finish(key, "x")
    seen.begin(A)
    seen.begin(C)
    seen.finish(C, "x")
    assert [seen.begin(key).seen for key in (A, C, B)] == [Seen.DONE, Seen.DONE, Seen.NEW]


def test_replies_are_bounded_in_bytes() -> None:
    seen: Dedup[bytes, str] = Dedup(reply_bytes=100)
    for key in (A, B):
        seen.begin(key)
        seen.finish(key, "x", 60)
    assert (len(seen), seen.reply_bytes) == (1, 60)
    seen.begin(C)
    seen.finish(C, "too large to keep", 101)
    assert (len(seen), seen.reply_bytes) == (0, 0)


def test_requests_in_progress_are_bounded_and_never_dropped() -> None:
    seen: Dedup[bytes, str] = Dedup(in_progress=2)
    assert [seen.begin(key).seen for key in (A, B, C, A)] == [
        Seen.NEW,
        Seen.NEW,
        Seen.FULL,
        Seen.IN_PROGRESS,
    ]
    seen.finish(A, "x")
    assert seen.begin(C).seen is Seen.NEW


def test_finish_needs_a_request_in_progress() -> None:
    seen: Dedup[bytes, str] = Dedup()
    with pytest.raises(LocalProtocolError):
        seen.finish(A, "x")
    seen.begin(A)
    seen.finish(A, "x")
    with pytest.raises(LocalProtocolError):
        seen.finish(A, "again")


@given(st.lists(st.tuples(st.sampled_from("bef"), st.integers(0, 5), st.integers(0, 9))))
def test_the_bounds_hold_and_nothing_is_computed_twice(steps: list[tuple[str, int, int]]) -> None:
    seen: Dedup[int, int] = Dedup(in_progress=3, replies=3, reply_bytes=15)
    computing: set[int] = set()
    for action, key, size in steps:
        if action == "b":
            found = seen.begin(key)
            assert (found.seen is Seen.IN_PROGRESS) == (key in computing)
            if found.seen is Seen.NEW:
                computing.add(key)
            if found.seen is Seen.DONE:
                assert found.reply == key
        elif action == "e" and key in computing:
            seen.finish(key, key, size)
            computing.discard(key)
        elif action == "f":
            seen.forget(key)
            computing.discard(key)
        assert seen.in_progress == len(computing) <= 3
        assert len(seen) <= 3 and 0 <= seen.reply_bytes <= 15
