"""Metrics of a runtime and its bus, in one Prometheus registry."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agentwire.errors import InputError
from agentwire.telemetry.faults import Faults
from agentwire.telemetry.status import BUCKETS_MS

BUS_GAUGES: Final = frozenset({"peers", "tasks", "queued_messages", "queued_bytes"})
BUS_LABELS: Final = {"refused": "code", "nacked": "code", "dropped": "why"}


class RuntimeMetrics(Collector):
    """Counters and latencies of one runtime. Written in the event loop, read in any thread.

    ``read_state`` returns the current ``agents``, ``bus``, ``outstanding`` and ``credits``, or
    nothing before the runtime has started.

    Attributes:
        registry: everything that a scrape shows; a gateway adds its own metrics.
        outcomes: requests that ended, by (wire, ``answered`` or error code).
        fallbacks: answers that went as text although soft tokens were asked for, by (wire, reason).
        restarts: incarnations of each agent after its first.
        faults: errors that no request depends on: of the journal, of callbacks, ….
    """

    def __init__(self, read_state: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.restarts: Counter[str] = Counter()
        self.faults = Faults()
        # Plain lists: ``prometheus_client.Histogram`` takes 3 to 7 us for the stages of one reply.
        self._buckets: defaultdict[str, list[int]] = defaultdict(
            lambda: [0] * (len(BUCKETS_MS) + 1)
        )
        self._total_ms: defaultdict[str, float] = defaultdict(float)
        self._read_state = read_state
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def record_reply(
        self, wire: str, reason: str, stages: Mapping[str, float], latency_ms: float
    ) -> None:
        """Counts an answered request."""
        self.outcomes[wire, "answered"] += 1
        if reason:
            self.fallbacks[wire, reason] += 1
        for stage, ms in (*stages.items(), ("all", latency_ms)):
            self._buckets[stage][bisect_left(BUCKETS_MS, ms)] += 1
            self._total_ms[stage] += ms

    def record_failure(self, wire: str, code: str) -> None:
        """Counts a request that ended without an answer."""
        self.outcomes[wire, code] += 1

    def to_json(self) -> dict[str, Any]:
        """Totals for the status file."""
        return {
            "outcomes": [[*key, n] for key, n in sorted(self.outcomes.items())],
            "fallbacks": [[*key, n] for key, n in sorted(self.fallbacks.items())],
            "restarts": dict(self.restarts),
            "faults": self.faults.to_json(),
            "stages": {
                stage: {"counts": counts.copy(), "total_ms": round(self._total_ms[stage], 3)}
                for stage, counts in self._buckets.copy().items()
            },
        }

    def describe(self) -> Iterator[Metric]:
        return iter(())  # the metrics are known only at a scrape

    def collect(self) -> Iterator[Metric]:
        state = self._read_state()
        if not state:
            return
        yield from bus_metrics(state["bus"])
        yield GaugeMetricFamily(
            "agentwire_outstanding", "Requests admitted and not ended.", value=state["outstanding"]
        )
        totals = self.to_json()
        for name, labels, what, rows in (
            ("requests", ["wire", "outcome"], "Requests that ended.", totals["outcomes"]),
            ("fallbacks", ["wire", "reason"], "Answers that went as text.", totals["fallbacks"]),
            ("restarts", ["agent"], "Agents started again.", totals["restarts"].items()),
            ("faults", ["kind"], "Errors that ended no request.", self.faults.counts.items()),
        ):
            counter = CounterMetricFamily(f"agentwire_{name}", what, labels=labels)
            for *values, count in rows:
                counter.add_metric(values, count)
            yield counter
        epochs = {name: info["epoch"] for name, info in state["agents"].items()}
        for name, label, what, values in (
            ("credits", "wire", "Messages that may be sent now.", state["credits"]),
            ("agent_epoch", "agent", "Incarnation of each agent.", epochs),
        ):
            gauge = GaugeMetricFamily(f"agentwire_{name}", what, labels=[label])
            for key, value in values.items():
                gauge.add_metric([key], value)
            yield gauge
        stages = HistogramMetricFamily(
            "agentwire_stage_seconds",
            "Time in each stage; `all`: the whole request.",
            labels=["stage"],
        )
        bounds = [*(str(bound / 1000) for bound in BUCKETS_MS), "+Inf"]
        for stage, seen in totals["stages"].items():
            buckets = list(zip(bounds, itertools.accumulate(seen["counts"]), strict=True))
            stages.add_metric([stage], buckets, sum_value=seen["total_ms"] / 1000)
        yield stages


def bus_metrics(counters: Mapping[str, int]) -> Iterator[Metric]:
    """``Broker.metrics`` as Prometheus metrics: ``refused.overloaded`` becomes a label."""
    families: dict[tuple[str, bool], CounterMetricFamily] = {}
    for key, value in sorted(counters.items()):
        name, _, detail = key.partition(".")
        metric = f"agentwire_bus_{name}"
        if name in BUS_GAUGES:
            yield GaugeMetricFamily(metric, f"{name} of the bus now.", value=value)
            continue
        labels = [BUS_LABELS.get(name, "what")] if detail else []
        family = families.get((metric, bool(detail)))
        if family is None:
            family = CounterMetricFamily(metric, f"{name} at the bus.", labels=labels)
            families[metric, bool(detail)] = family
        family.add_metric([detail] if detail else [], value)
    yield from families.values()


@contextmanager
def serving(registry: CollectorRegistry, port: int) -> Iterator[int]:
    """Serves a registry on this machine's loopback; yields the port. Port 0 picks a free one.
    Raises an InputError if another program uses it."""
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise InputError(
            f"Metrics cannot be served on port {port}: {error.strerror}.",
            hint="Use another port, or 0 for any free one.",
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
