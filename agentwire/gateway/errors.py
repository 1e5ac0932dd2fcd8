"""HTTP responses for errors."""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.responses import JSONResponse

from agentwire.chat.errors import ChatError, ErrorKind
from agentwire.errors import AgentwireError, BusClosed, InputError, NackCode, RequestError

RETRY_S: Final = 1.0
STATUS: Final[dict[str, int]] = {
    ErrorKind.INVALID: 400,
    ErrorKind.AUTH: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.RATE: 429,
    ErrorKind.SERVER: 500,
    "model_not_found": 404,
    "timeout": 408,
    "request_too_large": 413,
    "closing": 503,
    "agent_down": 503,
    "deadline": 504,
}
"""HTTP status by error code; for all other codes, by kind."""
_KINDS: Final = {
    NackCode.OVERLOADED: ErrorKind.RATE,
    NackCode.EXPIRED: ErrorKind.NOT_FOUND,
    NackCode.TOO_LARGE: ErrorKind.INVALID,
    NackCode.MALFORMED: ErrorKind.INVALID,
    NackCode.UNSUPPORTED: ErrorKind.INVALID,
    NackCode.NO_BRIDGE: ErrorKind.INVALID,
    NackCode.BRIDGE_MISMATCH: ErrorKind.INVALID,
    NackCode.PROMPT_MISMATCH: ErrorKind.INVALID,
}


def as_chat_error(error: AgentwireError) -> ChatError:
    """Any error in the terms of OpenAI's API."""
    match error:
        case ChatError():
            return error
        case RequestError():
            kind = _KINDS.get(error.code, ErrorKind.SERVER)
            too_large = error.code is NackCode.TOO_LARGE
            code = "context_length_exceeded" if too_large else error.code.value
        case InputError():
            kind, code = ErrorKind.INVALID, "invalid_value"
        case BusClosed():
            kind, code = ErrorKind.SERVER, "closing"
        case _:
            kind, code = ErrorKind.SERVER, "internal_error"
    retry_after_s = getattr(error, "retry_after_s", None)
    return ChatError(kind, error.message, hint=error.hint, code=code, retry_after_s=retry_after_s)


def status_of(error: AgentwireError) -> int:
    found = as_chat_error(error)
    return STATUS.get(found.code or "", STATUS[found.kind])


def error_body(error: AgentwireError) -> dict[str, Any]:
    """The error in OpenAI's format."""
    found = as_chat_error(error)
    fields = {"message": str(found), "type": found.kind, "param": found.param, "code": found.code}
    return {"error": fields}


def error_response(error: AgentwireError, status: int | None = None) -> JSONResponse:
    """The response to an error; ``status`` overrides the status from the table."""
    found = as_chat_error(error)
    status = status or status_of(found)
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(found.retry_after_s or RETRY_S)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(found), status, headers)
