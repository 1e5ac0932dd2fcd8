"""Labels of a machine that is busy, and of a process with priority."""

from __future__ import annotations

import os

import psutil
import pytest

from agentwire.benchmark.machine import BUSY, conditions, load_average


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process without priority."""
    monkeypatch.setattr(os, "nice", lambda by: 0)
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_OTHER, raising=False)
    return monkeypatch


def test_only_a_busy_machine_is_labelled(ordinary: pytest.MonkeyPatch) -> None:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    assert conditions(None) == []
    assert conditions(BUSY * cores * 0.99) == []
    (label,) = conditions(3.0 * cores)
    assert f"load average {3.0 * cores:g}" in label


def test_the_load_is_a_number_or_unknown() -> None:
    load = load_average()
    assert load is None or load >= 0


def test_a_process_with_priority_is_labelled(ordinary: pytest.MonkeyPatch) -> None:
    ordinary.setattr(os, "nice", lambda by: -15)
    assert "niceness -15" in conditions(0.0)[0]
    ordinary.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_FIFO, raising=False)
    assert "real-time" in conditions(0.0)[0]
