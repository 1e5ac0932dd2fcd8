"""Exit codes of an agent process, and input errors as the reason of its Goodbye."""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Final

from agentwire import errors
from agentwire.errors import InputError

PREFIX: Final = "input-error:"
MAX_MESSAGE: Final = 300  # with hint and JSON it must fit a Goodbye (512 bytes)
MAX_HINT: Final = 120


class ExitCode(IntEnum):
    """Exit codes, from sysexits.h where it has one."""

    DONE = 0  # asked to stop; all requests are answered
    BUS_LOST = 69  # no connection to the broker
    ERROR = 70  # a bug: the log has the traceback
    ORPHANED = 75  # the parent process is gone
    INPUT = 78  # wrong input from the user: the Goodbye says what


def encode_error(error: InputError) -> str:
    """The error as the reason of a Goodbye, shortened to fit."""
    kind, message, hint = type(error).__name__, error.message, error.hint or ""
    message, hint = message[:MAX_MESSAGE], hint[:MAX_HINT]
    while True:
        text = PREFIX + json.dumps([kind, message, hint], ensure_ascii=False)
        if len(text.encode()) <= MAX_MESSAGE + MAX_HINT or not (message or hint):
            return text
        message, hint = message[: len(message) * 9 // 10], hint[: len(hint) * 9 // 10]


def decode_error(reason: str) -> InputError | None:
    """The error in the reason of a Goodbye; None if it holds none."""
    if not reason.startswith(PREFIX):
        return None
    try:
        kind, message, hint = json.loads(reason[len(PREFIX) :])
    except (ValueError, TypeError):
        return None
    known = getattr(errors, str(kind), InputError)
    if not (isinstance(known, type) and issubclass(known, InputError)):
        known = InputError
    return known(str(message), hint=str(hint) or None)
