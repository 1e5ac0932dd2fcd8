"""How much a gateway takes on: what is more is refused at once, never queued without bound."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from agentwire.chat.errors import INVALID, HttpError, overloaded
from agentwire.chat.requests import Request


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """
    Attributes:
        requests: that may be answered at once.
        requests_of_one: of one API key.
        body_bytes: of a request.
        body_s: how long a client may take to send it.
        timeout_s: how long an answer may take.
    """

    requests: int = 256
    requests_of_one: int = 128
    body_bytes: int = 1024 * 1024
    body_s: float = 30.0
    timeout_s: float = 300.0


class Gate:
    """Counts requests in, and refuses those that are too many."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._inside: Counter[str] = Counter()

    @property
    def inside(self) -> int:
        return self._inside.total()

    @contextmanager
    def enter(self, owner: str) -> Iterator[None]:
        """
        Raises:
            HttpError: 429.
        """
        if self.inside >= self._limits.requests:
            raise overloaded("The gateway answers as many requests as it can: try again.")
        if self._inside[owner] >= self._limits.requests_of_one:
            raise overloaded("This API key has as many requests under way as it may: try again.")
        self._inside[owner] += 1
        try:
            yield
        finally:
            self._inside[owner] -= 1
            if not self._inside[owner]:
                del self._inside[owner]


async def read_body(request: HttpRequest, limits: GatewayLimits) -> bytes:
    """
    Raises:
        HttpError: 413, 408, or the client left.
    """
    most = limits.body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large(most)
    except TimeoutError:
        raise HttpError(408, INVALID, "The body did not come in time.", code="timeout") from None
    except ClientDisconnect:
        raise HttpError(400, INVALID, "The body did not come to its end.") from None
    return bytes(body)


def too_large(most: int) -> HttpError:
    return HttpError(
        413, INVALID, f"The body is larger than {most} bytes.", code="request_too_large"
    )


def parse(kind: type[Request], body: bytes) -> Any:
    """
    Raises:
        HttpError: 400, with the field that is to blame.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        if where is None and ": " in message and first["type"] == "value_error":
            where = message.split(": ")[0]
        named = where is None or message.startswith(f"{where}:")
        shown = message if named else f"{where}: {message}"
        raise HttpError(400, INVALID, shown, code="invalid_value", param=where) from None
