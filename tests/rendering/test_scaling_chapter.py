"""The model beside what scaling measured, and its projection."""

from __future__ import annotations

from typing import Any

import pytest
from rendering.document import document
from rendering.scaling import modelled, most_pairs

BASE: dict[str, Any] = {
    "hardware": {"cpu": "some", "cores": 2},
    "versions": {"python": "3"},
    "started": "2026-01-02T03:04:05+00:00",
    "command": "python bench/scaling.py",
    "labels": ["FAKE MODELS that wait"],
}


def row(pairs: int, rate: float, runner: float, agents: float | None) -> dict[str, Any]:
    return {
        "pairs": pairs,
        "idle_pairs": 0,
        "messages_per_s": rate,
        "rows_per_s": 16 * rate,
        "p50_ms": 110.0,
        "runner_cpu_ms": runner,
        "agents_cpu_ms": agents,
    }


def way(*found: dict[str, Any], rows: int = 16) -> dict[str, Any]:
    settings = {
        "rows_of_a_message": rows,
        "compute_ms": 50.0,
        "seconds": 3.0,
        "payload_bytes_of_a_row": 65536,
        "in_flight_of_a_pair": 2,
    }
    return {**BASE, "settings": settings, "figures": list(found)}


@pytest.mark.parametrize(
    ("pairs", "agents", "expected"),
    [
        (3, 5.0, 54.0),  # the pairs
        (64, 5.0, 2 * 1000 / 7.0),  # two cores for runner and agents
        (64, None, 500.0),  # the runner's one core
    ],
)
def test_the_lowest_ceiling_holds(pairs: int, agents: float | None, expected: float) -> None:
    cost = row(8, 1.0, 2.0, agents)
    found = modelled(row(pairs, 0.0, 9.0, 9.0), row(1, 18.0, 9.0, 9.0), cost, cores=2)
    assert found == pytest.approx(expected)


def test_pairs_until_the_runner_or_the_network_is_full() -> None:
    cost = row(8, 1.0, 2.0, None)  # 500 messages a second
    assert most_pairs(50.0, cost, 1, share=1.0) == (25, 500.0)
    assert most_pairs(50.0, cost, 1, share=0.5) == (50, 500.0)
    assert most_pairs(1.0, cost, 1, share=1.0) == (1, 500.0)  # one pair has more than enough
    slow_network = most_pairs(50.0, cost, 12_500_000, share=1.0)  # 100 messages a second
    assert slow_network == (5, 100.0)


def test_the_chapter_shows_the_model_beside_the_measurement() -> None:
    record = {
        "benchmark": "scaling",
        "ways": {
            "tcp": way(row(1, 18.0, 3.0, 6.0), row(8, 120.0, 2.0, 5.0)),
            "gateway": way(row(1, 150.0, 1.25, 1.0), rows=1),
        },
    }
    text = document({"scaling": record})
    assert "| 8 | 120.0 | 1,920 | 110 | 2.00 | 5.00 | 144.0 (-17%) |" in text
    assert "Projection, not measured" in text
    assert "**FAKE MODELS that wait**" in text
    assert "800 requests a second" in text
