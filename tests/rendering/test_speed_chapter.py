"""Records of benchmarks as chapters of docs/results.md."""

from __future__ import annotations

from typing import Any

from rendering.document import document

BASE: dict[str, Any] = {
    "hardware": {"cpu": "some", "gpus": ["two of them"]},
    "versions": {"python": "3"},
    "started": "2026-01-02T03:04:05+00:00",
    "command": "agentwire bench all scenarios/throughput.yaml",
}


def cell(kind: str, method: str, batch: int, tokens: int, rate: float | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "method": method,
        "batch_size": batch,
        "text_tokens": tokens,
        "latency_ms": {"p50": 11.0, "p95": 12.0, "p99": 13.0, "n": 99},
        "stages_ms": {"encode": 4.0, "decode": 6.0, "wire": 0.5},
        "rows_per_s": rate,
    }


def record(model: str) -> dict[str, Any]:
    return {
        **BASE,
        "benchmark": "all",
        "interrupted": True,
        "labels": ["random weights (llama): speed only"],
        "agents": {
            "llama": {
                "model": model, "weights": "random", "dtype": "bfloat16", "device": "cuda:0",
                "threads": None,
            }
        },
        "settings": {
            "text_tokens": [48, 512], "bridge": "b", "soft_tokens": 8, "in_flight": 4, "rounds": 3,
            "seed": 0, "length_batch": 16,
        },
        "figures": {
            "e2e_p50_ms@1": 11.0, "e2e_p50_ms@1/512tok": 20.0, "stages_gap@1": 0.04,
            "samples_per_s@16": 900.0, "vs_direct@16": 1.9, "vs_direct@16/512tok": 4.5,
            "vs_direct_equal_gpus@16": 0.95, "bus_cost@16": 0.031, "samples_per_s@best": 1100.0,
            "vs_text_relay_latency@1": 25.0,
        },
        "cells": [
            cell("latency", "bridge", 1, 48, None),
            cell("throughput", "bridge", 16, 48, 900.0),
            cell("throughput", "receiver_direct", 16, 48, 470.0),
            cell("throughput", "bridge", 16, 512, 300.0),
        ],
    }  # fmt: skip


def test_the_tables_hold_the_figures_and_say_what_was_measured() -> None:
    text = document({"speed-x": record("meta-llama/Llama-3.1-8B-Instruct")})
    assert "**random weights (llama): speed only**" in text
    assert "ended before the last round" in text
    assert "stopwatch within 4.0%" in text
    assert "| 16 | 900 | 470 | 1.90 x | 0.95 x | 3.1% |" in text
    assert "| 512 | 20.0 | - | - | - | 4.50 x | - |" in text


def test_the_papers_figures_stand_beside_their_shapes_alone() -> None:
    large = document({"speed-x": record("meta-llama/Llama-3.1-8B-Instruct")})
    assert "| `vs_text_relay_latency@1` | 22.4 | 25.0 |" in large
    assert "| `vs_direct@16` | 0.89 | 1.90 |" in large
    assert "papers" not in document({"speed-cpu": record("smollm2-135m-instruct")})


def test_the_bus_stands_beside_its_bare_sockets() -> None:
    figures = {
        f"{kind}_{part}": value
        for kind, factor in (("bare", 1), ("bus", 2))
        for part, value in (("p50_us", 100 * factor), ("p99_us", 200), ("messages_per_s", 9000))
    }
    ratios = {"bus_to_bare_p50": 2.0, "bus_to_bare_p99": 1.0, "bus_to_bare_messages_per_s": 1.0}
    bus = {
        **BASE,
        "benchmark": "bus",
        "labels": ["busy"],
        "settings": {"payload_bytes": 65536, "transport": "ipc", "rounds": 5, "messages": 400},
        "rounds": {"bare": [], "bus": []},
        "figures": {**figures, **ratios},
    }
    text = document({"bus-cpu": bus})
    assert "- **busy**" in text
    assert "| bus | 200 | 200 | 9,000 |" in text
    assert "| **bus, to bare** | **2.00 x** | **1.00 x** | **1.00 x** |" in text
