"""Conditions of the machine that a reader of figures must know: load and priority."""

from __future__ import annotations

import os

import psutil

BUSY = 0.25
"""Load average for each core from which a benchmark says that the machine was busy."""


def load_average() -> float | None:
    """Mean number of running or waiting threads in the last minute; None if unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # not on every system
        return None


def conditions(load: float | None) -> list[str]:
    """Labels of a record. ``load`` is the load average before the start."""
    return [label for label in (_busy(load), _priority()) if label is not None]


def _busy(load: float | None) -> str | None:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if load is None or load < BUSY * cores:
        return None
    return (
        f"machine was busy: load average {load:g} on {cores} cores before the start, so times are "
        "longer and less even than on an idle machine; ratios are of the same run"
    )


def _priority() -> str | None:
    try:
        if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
            return "the benchmark ran with real-time priority"
    except (AttributeError, OSError):  # not on every system
        return None
    nice = os.nice(0)
    return f"the benchmark ran with raised priority (niceness {nice})" if nice < 0 else None
