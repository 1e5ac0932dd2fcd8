from prometheus_client import CollectorRegistry

from agentwire.telemetry.prometheus import BusCollector, exposition


def test_counters_of_the_bus_become_metrics_with_labels() -> None:
    counters = {"forwarded": 3, "refused.overloaded": 2, "refused.deadline": 1, "peers": 4}
    counters |= {"nacked.bad_payload": 5, "dropped.orphan": 6}
    registry = CollectorRegistry()
    registry.register(BusCollector(lambda: counters))
    lines = exposition(registry).decode().splitlines()
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
    counters["forwarded"] = 7  # read anew at each scrape
    assert "agentwire_bus_forwarded_total 7.0" in exposition(registry).decode()
