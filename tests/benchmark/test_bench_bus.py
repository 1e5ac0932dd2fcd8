"""The arithmetic and the order of the bus benchmark, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import agentwire

from agentwire.benchmark.bus import PARTS, compare, figures_of
from agentwire.benchmark.buspeers import LATENCY, MARK, RATE, WARM, Arrivals, Figures, mark
from agentwire.benchmark.record import BusRecord


def figures(p50: float, p99: float, rate: float) -> Figures:
    return dict(zip(PARTS, (p50, p99, rate), strict=True))


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that becomes twice as slow changes no ratio."""
    seen = {
        "bare": [figures(100, 200, 10_000), figures(200, 400, 5_000), figures(100, 200, 10_000)],
        "bus": [figures(180, 500, 5_000), figures(360, 1_000, 2_500), figures(180, 500, 5_000)],
    }
    found = figures_of(seen)
    assert found["bus_to_bare_p50"] == 1.8
    assert found["bus_to_bare_p99"] == 2.5
    assert found["bus_to_bare_messages_per_s"] == 0.5
    assert found["bare_p50_us"] == 100 and found["bus_messages_per_s"] == 5_000


def test_each_bus_is_held_against_its_own_bare_sockets() -> None:
    seen = {
        "bare": [figures(100, 1, 1)],
        "bus": [figures(200, 1, 1)],
        "bare_curve": [figures(300, 1, 1)],
        "bus_curve": [figures(450, 1, 1)],
    }
    found = figures_of(seen)
    assert found["bus_to_bare_p50"] == 2.0
    assert found["bus_curve_to_bare_p50"] == 1.5


def test_rounds_alternate_and_partial_rounds_do_not_count() -> None:
    order: list[str] = []
    kept: list[BusRecord] = []

    def measure(kind: str) -> Figures:
        order.append(kind)
        if len(order) == 6:
            raise KeyboardInterrupt
        return figures(1 if kind == "bare" else 2, 1, 1)

    record = compare(
        5,
        100,
        command="bench",
        tell=lambda number, kind, found: None,
        keep=kept.append,
        measures={k: lambda messages, k=k: measure(k) for k in ("bare", "bus")},  # type: ignore[misc]
    )
    assert order == ["bare", "bus", "bus", "bare", "bare", "bus"]
    assert record.interrupted and record.settings["rounds"] == 2
    assert record.figures["bus_to_bare_p50"] == 2.0
    assert [r.settings["rounds"] for r in kept] == [1, 2]


def test_nothing_measured_is_an_empty_map() -> None:
    assert figures_of({"bare": [], "bus": []}) == {}


def test_arrivals_count_each_phase_for_itself() -> None:
    arrivals = Arrivals(messages=3)
    for phase in (WARM, LATENCY, LATENCY, LATENCY):
        arrivals.add(mark(phase))
    assert not arrivals.done.is_set()
    for _ in range(3):
        arrivals.add(mark(RATE))
    assert arrivals.done.is_set()
    found = arrivals.figures()
    assert set(found) == set(PARTS)
    assert found["p99_us"] >= found["p50_us"] > 0


def test_a_mark_fits_a_trace_id() -> None:
    assert MARK.size == 16


@pytest.mark.integration
def test_the_command_measures_both(tmp_path: Path) -> None:
    options = ["--rounds", "2", "--messages", "100", "--out", "bus.json", "--json"]
    done = agentwire(tmp_path, "bench", "bus", *options)
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "bus.json").read_text())
    assert len(record["rounds"]["bare"]) == len(record["rounds"]["bus"]) == 2
    assert record["settings"]["payload_bytes"] == 65_536
    assert all(record["figures"][f"bus_to_bare_{part}"] > 0 for part in ("p50", "messages_per_s"))
