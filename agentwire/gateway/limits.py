"""Limits of the gateway. Requests beyond a limit are refused at once and never queued."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from agentwire.chat.errors import ChatError, ErrorKind
from agentwire.chat.handles import TTL_S

BUFFER_BYTES: Final = 64 * 1024 * 1024
"""Bytes of all bodies that are being received."""


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    requests: int = 256  # concurrent
    requests_per_key: int = 128
    body_bytes: int = 1024 * 1024
    client_s: float = 20.0  # for a client to send a request head, or to read what was sent
    body_s: float = 25.0  # to receive a body
    timeout_s: float = 300.0  # to answer
    handle_ttl_s: float = TTL_S


class ConcurrencyLimiter:
    """Counts the requests in flight and refuses more than the limits allow."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._in_flight: Counter[str] = Counter()
        self._draining: asyncio.Event | None = None  # set when no request is in flight

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    @contextmanager
    def enter(self, owner: str) -> Iterator[None]:
        """Raises ChatError if a limit is reached, or the gateway stops."""
        if self._draining is not None:
            raise ChatError(
                ErrorKind.SERVER,
                "The gateway is stopping.",
                hint="Try again later.",
                code="closing",
            )
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
            if self._draining is not None and not self._in_flight:
                self._draining.set()

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, and waits until those in flight end or the time is up."""
        self._draining = asyncio.Event()
        if self._in_flight:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), seconds)


class BodyBuffer:
    """Counts the bytes of the bodies that are being received, and refuses more than fit."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._free = max(BUFFER_BYTES, 4 * limits.body_bytes)

    def take(self, size: int) -> None:
        """Raises ChatError if there is no room; give back what was taken with a negative size."""
        if size > self._free:
            raise _overloaded("The gateway receives too much at a time.")
        self._free -= size


def _overloaded(message: str) -> ChatError:
    return ChatError(ErrorKind.RATE, message, hint="Try again later.", code="overloaded")
