"""Errors in the shape that OpenAI's clients know, and where each of ours belongs."""

from __future__ import annotations

import math
from typing import Any, Final

from agentwire.errors import AgentwireError, BusClosed, InputError, NackCode, RequestError

RETRY_S: Final = 1.0

INVALID, AUTH, RATE = "invalid_request_error", "authentication_error", "rate_limit_error"
FORBIDDEN, NOT_FOUND, SERVER = "permission_error", "not_found_error", "server_error"

_BY_CODE: Final[dict[NackCode, tuple[int, str]]] = {
    NackCode.OVERLOADED: (429, RATE),
    NackCode.DEADLINE: (504, SERVER),
    NackCode.CLOSING: (503, SERVER),
    NackCode.AGENT_DOWN: (503, SERVER),
    NackCode.EXPIRED: (404, NOT_FOUND),
    NackCode.TOO_LARGE: (400, INVALID),
    NackCode.MALFORMED: (400, INVALID),
    NackCode.UNSUPPORTED: (400, INVALID),
    NackCode.NO_BRIDGE: (400, INVALID),
    NackCode.BRIDGE_MISMATCH: (400, INVALID),
    NackCode.PROMPT_MISMATCH: (400, INVALID),
}


class HttpError(Exception):
    """An answer that is no success.

    Args:
        status: HTTP status.
        kind: OpenAI's ``type``.
        message: for people.
        code: for programs.
        param: which field of the request is to blame.
        retry_after_s: seconds; for 429 and 503.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        headers = {}
        if self.status in (429, 503):
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s or RETRY_S)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def http_error(error: AgentwireError) -> HttpError:
    """The answer to a request that ended with this error."""
    if isinstance(error, RequestError):
        status, kind = _BY_CODE.get(error.code, (500, SERVER))
        code: str = error.code.value
        if error.code is NackCode.TOO_LARGE:
            code = "context_length_exceeded"
        return HttpError(status, kind, str(error), code=code, retry_after_s=error.retry_after_s)
    if isinstance(error, InputError):
        return HttpError(400, INVALID, str(error), code="invalid_value")
    if isinstance(error, BusClosed):
        return HttpError(503, SERVER, str(error), code="closing")
    return HttpError(500, SERVER, str(error), code="internal_error")


def overloaded(message: str, retry_after_s: float = RETRY_S) -> HttpError:
    return HttpError(429, RATE, message, code="overloaded", retry_after_s=retry_after_s)


def not_a_model(model: str, known: list[str]) -> HttpError:
    shown = ", ".join(known)
    return HttpError(
        404,
        INVALID,
        f"The model {model[:80]!r} does not exist. Models: {shown}.",
        code="model_not_found",
        param="model",
    )
