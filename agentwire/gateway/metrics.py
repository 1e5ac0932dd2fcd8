"""What a gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agentwire.chat.answers import Answer
from agentwire.telemetry.prometheus import BusCollector

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """The registry behind ``/metrics``. Labels hold names of this scenario only, never a client's.

    Args:
        bus: counters and gauges of the bus.
        handles: how many handles there are.
    """

    def __init__(self, bus: Callable[[], Mapping[str, int]], handles: Callable[[], int]) -> None:
        registry = self.registry = CollectorRegistry()
        registry.register(BusCollector(bus))
        self._requests = Counter(
            "agentwire_gateway_requests",
            "Requests by route, model and HTTP status.",
            ["route", "model", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "agentwire_gateway_request_seconds",
            "Time from the body's end to the answer's.",
            ["route"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._channels = Counter(
            "agentwire_gateway_answers",
            "Answers by model, channel and the reason for text.",
            ["model", "channel", "reason"],
            registry=registry,
        )
        self._tokens = Counter(
            "agentwire_gateway_tokens",
            "Tokens by model and kind; soft ones are among those of the prompt.",
            ["model", "kind"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "agentwire_gateway_in_flight", "Requests that are answered now.", registry=registry
        )
        Gauge(
            "agentwire_gateway_handles", "Latent handles that are good now.", registry=registry
        ).set_function(handles)

    def ended(self, route: str, model: str, status: int, seconds: float) -> None:
        """One request has its answer. ``model``: "" where it named none that exists."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, model: str, answer: Answer) -> None:
        """An agent has answered."""
        facts = answer.facts
        self._channels.labels(model, facts["channel"], facts["reason"]).inc()
        for kind in ("prompt_tokens", "completion_tokens", "soft_tokens"):
            self._tokens.labels(model, kind.removesuffix("_tokens")).inc(answer.usage[kind])
