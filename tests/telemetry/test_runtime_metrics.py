from typing import Any

from prometheus_client import generate_latest

from agentwire.telemetry.metrics import RuntimeMetrics
from agentwire.telemetry.status import quantile


def test_a_scrape_shows_the_bus_and_the_requests() -> None:
    counters = {"forwarded": 3, "refused.overloaded": 2, "refused.deadline": 1, "peers": 4}
    counters |= {"nacked.bad_payload": 5, "dropped.orphan": 6}
    state: dict[str, Any] = {"agents": {}, "bus": counters, "outstanding": 0, "credits": {}}
    metrics = RuntimeMetrics(lambda: state)
    registry = metrics.registry
    for ms in (0.5, 1.5, 60_000):
        metrics.record_reply("a->b", "", {}, ms)
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        "agentwire_bus_forwarded_total 3.0",
        'agentwire_bus_refused_total{code="overloaded"} 2.0',
        'agentwire_bus_refused_total{code="deadline"} 1.0',
        'agentwire_bus_nacked_total{code="bad_payload"} 5.0',
        'agentwire_bus_dropped_total{why="orphan"} 6.0',
        "agentwire_bus_peers 4.0",
        "# TYPE agentwire_bus_peers gauge",
        'agentwire_requests_total{outcome="answered",wire="a->b"} 3.0',
        'agentwire_stage_seconds_bucket{le="0.001",stage="all"} 1.0',
        'agentwire_stage_seconds_bucket{le="30.0",stage="all"} 2.0',
        'agentwire_stage_seconds_count{stage="all"} 3.0',
    ):
        assert line in lines
    assert lines.count("# TYPE agentwire_bus_refused_total counter") == 1
    counters["forwarded"] = 7  # read at each scrape
    assert "agentwire_bus_forwarded_total 7.0" in generate_latest(registry).decode()


def test_before_the_start_a_scrape_shows_no_state() -> None:
    assert "agentwire_outstanding" not in generate_latest(RuntimeMetrics().registry).decode()


def test_totals_for_the_status_file() -> None:
    metrics = RuntimeMetrics()
    for ms in (1.5, 3.0, 3.0, 700.0):
        metrics.record_reply("a->b", "", {"encode": ms}, 2 * ms)
    metrics.record_failure("a->b", "deadline")
    status = metrics.to_json()
    assert status["outcomes"] == [["a->b", "answered", 4], ["a->b", "deadline", 1]]
    encode = status["stages"]["encode"]
    assert (sum(encode["counts"]), encode["total_ms"]) == (4, 707.5)
    assert (quantile(encode["counts"], 0.5), quantile(encode["counts"], 0.99)) == (5, 1000)
    assert status["stages"]["all"]["total_ms"] == 1415.0
    assert quantile([0] * len(encode["counts"]), 0.5) == 0.0
