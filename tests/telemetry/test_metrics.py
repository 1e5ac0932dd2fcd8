from typing import Any

from prometheus_client import generate_latest

from agentwire.telemetry.metrics import MAX_UNOBSERVED, RuntimeMetrics
from agentwire.telemetry.status import quantile


def test_counters_of_the_bus_become_metrics_with_labels() -> None:
    counters = {"forwarded": 3, "refused.overloaded": 2, "refused.deadline": 1, "peers": 4}
    counters |= {"nacked.bad_payload": 5, "dropped.orphan": 6}
    state: dict[str, Any] = {"agents": {}, "bus": counters, "outstanding": 0, "credits": {}}
    registry = RuntimeMetrics(lambda: state).registry
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        "agentwire_bus_forwarded_total 3.0",
        'agentwire_bus_refused_total{code="overloaded"} 2.0',
        'agentwire_bus_refused_total{code="deadline"} 1.0',
        'agentwire_bus_nacked_total{code="bad_payload"} 5.0',
        'agentwire_bus_dropped_total{why="orphan"} 6.0',
        "agentwire_bus_peers 4.0",
        "# TYPE agentwire_bus_peers gauge",
    ):
        assert line in lines
    assert lines.count("# TYPE agentwire_bus_refused_total counter") == 1
    counters["forwarded"] = 7  # read at each scrape
    assert "agentwire_bus_forwarded_total 7.0" in generate_latest(registry).decode()


def test_before_the_start_a_scrape_shows_no_state() -> None:
    assert "agentwire_outstanding" not in generate_latest(RuntimeMetrics().registry).decode()


def test_stages_of_the_status_file_come_from_the_histogram() -> None:
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


def test_every_reply_is_observed_once() -> None:
    metrics = RuntimeMetrics()
    for n in range(1, 2 * MAX_UNOBSERVED + 2):
        metrics.record_reply("a->b", "", {}, 1.0)
        if n % 7 == 0:
            assert sum(metrics.to_json()["stages"]["all"]["counts"]) == n
    assert 'agentwire_stage_seconds_count{stage="all"} 65.0' in (
        generate_latest(metrics.registry).decode()
    )
