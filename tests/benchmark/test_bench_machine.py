"""A machine that is not idle is named."""

from __future__ import annotations

import psutil

from agentwire.benchmark.machine import BUSY, load_average, warning


def test_only_a_machine_with_other_work_is_named() -> None:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    assert warning(None) is None
    assert warning(BUSY * cores * 0.99) is None
    said = warning(3.0 * cores)
    assert said is not None and f"load average {3.0 * cores:g}" in said


def test_the_load_is_a_number_or_unknown() -> None:
    load = load_average()
    assert load is None or load >= 0
