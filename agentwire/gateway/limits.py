"""Limits of the gateway. Requests beyond a limit are refused at once and never queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agentwire.chat.errors import ChatError, ErrorKind
from agentwire.chat.handles import TTL_S


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    requests: int = 256  # concurrent
    requests_per_key: int = 128
    body_bytes: int = 1024 * 1024
    body_s: float = 30.0  # to receive a body
    timeout_s: float = 300.0  # to answer
    handle_ttl_s: float = TTL_S


class ConcurrencyLimiter:
    """Counts the requests in flight and refuses more than the limits allow."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._in_flight: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    @contextmanager
    def enter(self, owner: str) -> Iterator[None]:
        """Raises ChatError if a limit is reached."""
        if self.in_flight >= self._limits.requests:
            raise _overloaded("The gateway has reached its limit of concurrent requests.")
        if self._in_flight[owner] >= self._limits.requests_per_key:
            raise _overloaded("This API key has reached its limit of concurrent requests.")
        self._in_flight[owner] += 1
        try:
            yield
        finally:
            self._in_flight[owner] -= 1
            if not self._in_flight[owner]:
                del self._in_flight[owner]


def _overloaded(message: str) -> ChatError:
    return ChatError(ErrorKind.RATE, message, hint="Try again later.", code="overloaded")
