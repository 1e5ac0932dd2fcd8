"""From what was seen to figures: the arithmetic, with rounds that a drifting machine would give."""

from __future__ import annotations

import pytest

from agentwire.benchmark.drive import Burst
from agentwire.benchmark.figures import (
    figures_of,
    percentiles,
    record_of,
    stage_medians,
    stages_gap,
)
from agentwire.benchmark.plan import Measurement
from agentwire.spec.scenario import BenchPlan

PLAN = BenchPlan(prompt_tokens=4, text_tokens=[48, 256])


def latency(*ms: float, **stages: float) -> Burst:
    return Burst(list(ms), [stages for _ in ms], payload_bytes=65_536)


def rate(rows_per_s: float) -> Burst:
    return Burst([1.0], [{}], rows=round(rows_per_s * 10), seconds=10.0)


def test_percentiles_of_a_known_distribution() -> None:
    found = percentiles([float(n) for n in range(1, 102)])
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.n) == (51.0, 96.0, 100.0, 101)
    assert percentiles([]) is None


def test_stage_medians_count_a_missing_stage_as_nothing() -> None:
    bursts = [latency(5.0, encode=3.0, wire=1.0), latency(5.0, encode=5.0), latency(1.0)]
    assert stage_medians(bursts) == {"encode": 3.0, "wire": 0.0}


def test_the_gap_between_stages_and_the_stopwatch_is_taken_message_by_message() -> None:
    """Medians of stages need not add up; the stages of each message must."""
    bursts = [
        Burst([10.0, 20.0, 30.0], [{"encode": 9.5}, {"wire": 19.0}, {"encode": 1.0, "wire": 26.0}])
    ]
    assert stages_gap(bursts) == pytest.approx(0.05)
    assert stages_gap([Burst([10.0], [{"decode": 11.0}])]) == pytest.approx(0.1)


def test_latency_figures_have_the_names_that_programs_read() -> None:
    bridge, relay = (
        Measurement("latency", "bridge", 1, 48),
        Measurement("latency", "text_relay", 1, 48),
    )
    seen = {
        bridge: [latency(10.0, 10.0, 12.0, encode=4.0, bridge=1.0, decode=4.0, wire=0.8)],
        relay: [latency(200.0, 210.0, 220.0)],
    }
    figures = figures_of(seen, PLAN)
    assert figures["e2e_p50_ms@1"] == 10.0
    assert figures["e2e_p99_ms@1"] == pytest.approx(11.96)
    assert figures["stages_gap@1"] == pytest.approx(0.02)
    assert figures["sender_ms@1"] == 5.0 and figures["receiver_ms@1"] == 4.0
    assert figures["payload_bytes@1"] == 65_536
    assert figures["vs_text_relay_latency@1"] == 21.0
    assert figures["text_relay_e2e_p50_ms@1"] == 210.0


def test_throughput_ratios_are_taken_within_a_round() -> None:
    """The machine halves its speed in the second round: no ratio may change for that."""
    cells = {
        m: Measurement("throughput", m, 16, 48)  # type: ignore[arg-type]
        for m in ("bridge", "receiver_direct", "receiver_replicas", "text_relay", "in_process")
    }
    seen = {
        cells["bridge"]: [rate(800), rate(400), rate(800)],
        cells["receiver_direct"]: [rate(400), rate(200), rate(400)],
        cells["receiver_replicas"]: [rate(1000), rate(500), rate(1000)],
        cells["text_relay"]: [rate(50), rate(25), rate(50)],
        cells["in_process"]: [rate(1000), rate(500), rate(1000)],
    }
    figures = figures_of(seen, PLAN)
    assert figures["samples_per_s@16"] == figures["samples_per_s@best"] == 800
    assert figures["vs_direct@16"] == 2.0
    assert figures["vs_direct_equal_gpus@16"] == 0.8
    assert figures["vs_text_relay_throughput@16"] == 16.0
    assert figures["bus_cost@16"] == pytest.approx(0.2)


def test_each_method_is_taken_at_its_own_best_batch() -> None:
    seen = {
        Measurement("throughput", "bridge", 16, 48): [rate(900)],
        Measurement("throughput", "bridge", 64, 48): [rate(1000)],
        Measurement("throughput", "receiver_direct", 16, 48): [rate(500)],
        Measurement("throughput", "receiver_direct", 64, 48): [rate(400)],
        Measurement("throughput", "bridge", 16, 256): [rate(5000)],  # another length: not compared
    }
    figures = figures_of(seen, PLAN)
    assert (figures["samples_per_s@best"], figures["best_batch"]) == (1000, 64)
    assert (figures["direct_samples_per_s@best"], figures["direct_best_batch"]) == (500, 16)
    assert figures["vs_direct@best"] == 2.0
    assert figures["samples_per_s@16/256tok"] == 5000


def test_nothing_seen_gives_no_figure() -> None:
    assert figures_of({Measurement("latency", "bridge", 1, 48): []}, PLAN) == {}
    alone = figures_of({Measurement("throughput", "bridge", 1, 48): [rate(10)]}, PLAN)
    assert not [name for name in alone if name.startswith(("vs_", "bus_cost"))]


def test_a_cell_that_failed_later_keeps_its_figures_and_says_why() -> None:
    record = record_of(Measurement("throughput", "bridge", 16, 48), [rate(10), rate(30)], 4, "down")
    assert record.rows_per_s == 20 and record.rows_per_s_rounds == [10, 30]
    assert record.error == "down" and record.in_flight == 4
