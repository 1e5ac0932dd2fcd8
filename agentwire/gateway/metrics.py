"""The gateway's metrics, in the Prometheus registry of its runtime."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agentwire.chat.service import ChatReply

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Adds metrics to a registry. Labels hold only names of the scenario, no client input."""

    def __init__(self, registry: CollectorRegistry, handles: Callable[[], int]) -> None:
        self._requests = Counter(
            "agentwire_gateway_requests",
            "Requests by route, model and HTTP status.",
            ["route", "model", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "agentwire_gateway_request_seconds",
            "Time from the received body to the sent answer.",
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
            "Tokens by model and kind; prompt tokens include soft tokens.",
            ["model", "kind"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "agentwire_gateway_in_flight", "Requests in flight.", registry=registry
        )
        Gauge("agentwire_gateway_handles", "Valid latent handles.", registry=registry).set_function(
            handles
        )

    def ended(self, route: str, model: str, status: int, seconds: float) -> None:
        """One request has ended. ``model`` is empty if the request named no known model."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, model: str, reply: ChatReply) -> None:
        """An agent has answered."""
        self._channels.labels(model, reply.details["channel"], reply.details["reason"]).inc()
        for kind in ("prompt_tokens", "completion_tokens", "soft_tokens"):
            self._tokens.labels(model, kind.removesuffix("_tokens")).inc(reply.usage[kind])
