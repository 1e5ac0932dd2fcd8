"""A machine that is not idle is named."""

from __future__ import annotations

import os

import psutil
import pytest

from agentwire.benchmark.machine import BUSY, conditions, load_average, priority, warning


def test_only_a_machine_with_other_work_is_named() -> None:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    assert warning(None) is None
    assert warning(BUSY * cores * 0.99) is None
    said = warning(3.0 * cores)
    assert said is not None and f"load average {3.0 * cores:g}" in said


def test_the_load_is_a_number_or_unknown() -> None:
    load = load_average()
    assert load is None or load >= 0


def test_a_process_that_comes_first_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda by: 0)
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_OTHER, raising=False)
    assert priority() is None and conditions(0.0) == []
    monkeypatch.setattr(os, "nice", lambda by: -15)
    assert "niceness -15" in (priority() or "")
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_FIFO, raising=False)
    assert conditions(0.0) == [priority()] and "real-time" in (priority() or "")
