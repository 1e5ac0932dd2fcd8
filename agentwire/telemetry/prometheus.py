"""Figures of a runtime and its bus as Prometheus metrics (needs ``prometheus-client``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agentwire.errors import InputError
from agentwire.telemetry.live import BUCKETS_MS

GAUGES: Final = frozenset({"peers", "tasks", "queued_messages", "queued_bytes"})
"""What goes up and down; everything else only grows."""
DETAIL: Final = {"refused": "code", "nacked": "code", "dropped": "why"}
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class BusCollector(Collector):
    """``Broker.metrics`` as ``agentwire_bus_…``: ``refused.overloaded`` becomes a label.

    Args:
        metrics: read anew at each scrape.
    """

    def __init__(self, metrics: Callable[[], Mapping[str, int]]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        return iter(())  # what there is shows only at a scrape

    def collect(self) -> Iterator[Metric]:
        families: dict[tuple[str, bool], CounterMetricFamily] = {}
        for key, value in sorted(self._metrics().items()):
            name, _, detail = key.partition(".")
            metric = f"agentwire_bus_{name}"
            if name in GAUGES:
                yield GaugeMetricFamily(metric, f"{name} of the bus now.", value=value)
                continue
            labels = [DETAIL.get(name, "what")] if detail else []
            family = families.get((metric, bool(detail)))
            if family is None:
                family = CounterMetricFamily(metric, f"{name} at the bus.", labels=labels)
                families[metric, bool(detail)] = family
            family.add_metric([detail] if detail else [], value)
        yield from families.values()


class RuntimeCollector(Collector):
    """``Runtime.status`` as ``agentwire_…``, the bus's own figures included.

    Args:
        status: read anew at each scrape.
    """

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if not status:
            return
        yield from BusCollector(lambda: status["bus"]).collect()
        yield GaugeMetricFamily(
            "agentwire_outstanding", "Requests admitted and not ended.", value=status["outstanding"]
        )
        for name, labels, what, rows in (
            ("requests", ["wire", "outcome"], "Requests that ended.", status["outcomes"]),
            ("fallbacks", ["wire", "reason"], "Answers that went as text.", status["fallbacks"]),
            ("restarts", ["agent"], "Agents started again.", list(status["restarts"].items())),
        ):
            counter = CounterMetricFamily(f"agentwire_{name}", what, labels=labels)
            for *values, count in rows:
                counter.add_metric(values, count)
            yield counter
        for name, label, what, gauges in (
            ("credits", "wire", "Messages that may be sent now.", status["credits"]),
            ("agent_epoch", "agent", "Incarnation of each agent.", _epochs(status)),
        ):
            gauge = GaugeMetricFamily(f"agentwire_{name}", what, labels=[label])
            for key, value in gauges.items():
                gauge.add_metric([key], value)
            yield gauge
        yield from _stages(status["stages"])


def _epochs(status: Mapping[str, Any]) -> dict[str, int]:
    return {name: info["epoch"] for name, info in status["agents"].items()}


def _stages(stages: Mapping[str, Any]) -> Iterator[Metric]:
    family = HistogramMetricFamily(
        "agentwire_stage_seconds", "Time in each stage; `all`: the whole request.", labels=["stage"]
    )
    for stage, histogram in stages.items():
        seen, buckets = 0, []
        for bound, count in zip((*BUCKETS_MS, None), histogram["counts"], strict=True):
            seen += count
            buckets.append(("+Inf" if bound is None else str(bound / 1000), seen))
        family.add_metric([stage], buckets, sum_value=histogram["total_ms"] / 1000)
    yield family


@contextmanager
def serving(status: Callable[[], Mapping[str, Any]], port: int) -> Iterator[int]:
    """A Prometheus endpoint on this machine's loopback while this lasts; gives its port.

    Args:
        status: ``Runtime.status``.
        port: 0 picks one.

    Raises:
        InputError: the port is in use.
    """
    registry = CollectorRegistry()
    registry.register(RuntimeCollector(status))
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise InputError(
            f"Metrics cannot be served on port {port}: {error.strerror}.",
            hint="Give another port, or 0 for any.",
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def exposition(registry: CollectorRegistry) -> bytes:
    """What a scrape reads."""
    return generate_latest(registry)
