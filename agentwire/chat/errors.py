"""Errors of a chat request."""

from __future__ import annotations

from enum import StrEnum

from agentwire.errors import AgentwireError


class ErrorKind(StrEnum):
    """What kind of error it is, in the names that OpenAI's clients know."""

    INVALID = "invalid_request_error"
    AUTH = "authentication_error"
    FORBIDDEN = "permission_error"
    NOT_FOUND = "not_found_error"
    RATE = "rate_limit_error"
    SERVER = "server_error"


class ChatError(AgentwireError):
    """A chat request was refused.

    Args:
        code: what is wrong, for programs.
        param: the field of the request that is wrong.
        retry_after_s: when to try again, in seconds.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


def invalid(
    param: str | None, message: str, *, hint: str | None = None, code: str = "invalid_value"
) -> ChatError:
    """The request cannot be answered as it is; ``param`` is the field that is wrong."""
    return ChatError(ErrorKind.INVALID, message, hint=hint, code=code, param=param)
