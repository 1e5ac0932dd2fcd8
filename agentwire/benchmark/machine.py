"""Whether the machine had something else to do, and who came first: no figure should hide it."""

from __future__ import annotations

import os

import psutil

BUSY = 0.25
"""Load average for each core from which a benchmark says that it was not alone."""


def load_average() -> float | None:
    """Mean number of running or waiting threads in the last minute; None where nobody counts."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # not on every system
        return None


def priority() -> str | None:
    """How this process, and so its children, is preferred to others; None: it is not."""
    try:
        if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
            return "it ran with real-time priority: other programs had to wait for it"
    except (AttributeError, OSError):  # not on every system
        return None
    nice = os.nice(0)
    return f"it ran before other programs (niceness {nice})" if nice < 0 else None


def conditions(load: float | None) -> list[str]:
    """What a reader must know of the machine, where ``load`` was measured before the start."""
    return [said for said in (warning(load), priority()) if said is not None]


def warning(load: float | None) -> str | None:
    """What a reader must know of a machine that had this load before the benchmark; None: idle."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if load is None or load < BUSY * cores:
        return None
    return (
        f"other programs were at work: load average {load:g} on {cores} cores before the start, so "
        "times are longer and less even than on an idle machine; ratios are of the same run"
    )
