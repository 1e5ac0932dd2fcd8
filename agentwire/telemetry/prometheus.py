"""Counters of the bus as Prometheus metrics (needs ``prometheus-client``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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


def exposition(registry: CollectorRegistry) -> bytes:
    """What a scrape reads."""
    return generate_latest(registry)
