"""README's figures are those of the records (its accuracies are made by bench/render.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    return found


def cells(first: str) -> list[str]:
    """The cells after the first one of the row that begins with ``first``, without bold marks."""
    pattern = rf"^\| {re.escape(first)} \|(.*)\|$"
    rows = re.findall(pattern, README, flags=re.MULTILINE)
    assert len(rows) == 1, f"README has {len(rows)} rows that begin with {first!r}"
    return [cell.strip().replace("**", "") for cell in rows[0].split("|")]


@pytest.mark.parametrize("method", ["bridge", "text_relay", "receiver_direct", "sender_direct"])
def test_the_demos_table(method: str) -> None:
    found = record("demo-cpu")["methods"][method]
    low, high = found["wilson95"]
    assert cells(method.replace("_", " ")) == [
        f"{found['accuracy']:.3f}",
        f"{low:.3f} .. {high:.3f}",
        f"{found['latency_ms']['p50']:,.0f}",
        f"{found['rows_per_s']:.1f}",
        f"{found['payload_bytes']:,.0f}",
    ]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("two H100s, 8B and 7B shapes, **random weights**", "speed-h100x2"),
        ("two CPU cores, **small pair**", "speed-cpu"),
    ],
)
def test_the_table_of_machines(row: str, name: str) -> None:
    figures = record(name)["figures"]
    assert cells(row) == [
        number(figures["samples_per_s@16"]),
        f"{figures['vs_direct@16']:.2f} x",
        f"{figures['vs_direct_equal_gpus@16']:.2f} x",
        f"{number(figures['e2e_p50_ms@1'])} ms",
    ]


@pytest.mark.parametrize(("row", "at"), [("1", "1"), ("16", "16"), ("best of each", "best")])
def test_the_table_of_two_gpus(row: str, at: str) -> None:
    figures = record("speed-h100x2")["figures"]
    names = ("samples", "direct_samples", "direct_equal_gpus_samples", "text_relay_samples")
    assert cells(row) == [number(figures[f"{name}_per_s@{at}"]) for name in names]


def accuracy(name: str, method: str) -> str:
    return f"{record(name)['methods'][method]['accuracy']:.3f}"


def counted(name: str) -> str:
    found = record(name)["methods"]["bridge"]
    return f"{found['correct']:,} of {found['n']:,} on"


def bus_figure(name: str) -> str:
    return f"{record('bus-cpu')['figures'][name]:.2f} x"


def rate(name: str) -> str:
    return f"{record('overhead-cpu')['figures'][name]:.2f}"


SENTENCES = {
    "SST-2 through processes": lambda: (
        f"{counted('sst2-cpu')} SST-2 ({accuracy('sst2-cpu', 'bridge')}; the demo's other methods "
        f"there: text relay {accuracy('sst2-cpu', 'text_relay')}, receiver direct "
        f"{accuracy('sst2-cpu', 'receiver_direct')}, sender direct "
        f"{accuracy('sst2-cpu', 'sender_direct')})"
    ),
    "snippets through processes": lambda: (
        f"{counted('snippets-cpu')} the snippets ({accuracy('snippets-cpu', 'bridge')})"
    ),
    "the bus": lambda: (
        f"moves 64 KiB one way in {bus_figure('bus_to_bare_p50')} the time of bare ZeroMQ sockets, "
        f"{bus_figure('bus_to_bare_messages_per_s')} the messages a second "
        f"({bus_figure('bus_curve_to_bare_p50')} and "
        f"{bus_figure('bus_curve_to_bare_messages_per_s')} with CURVE)"
    ),
    "processes": lambda: (
        f"{rate('ratio_in_flight_2')} x the rows a second with two batches in flight, "
        f"{rate('ratio_in_flight_1')} x with one"
    ),
}


@pytest.mark.parametrize("about", SENTENCES)
def test_figures_in_sentences(about: str) -> None:
    assert SENTENCES[about]() in PROSE
