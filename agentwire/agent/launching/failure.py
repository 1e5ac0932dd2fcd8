"""How a child that cannot start tells why: an InputError through Goodbye, and exit codes."""

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
    """How an agent process ended (the numbers of sysexits.h where there is one)."""

    DONE = 0  # told to leave, and everything was answered
    BUS_LOST = 69  # the broker is gone
    ERROR = 70  # a bug: the log has the traceback
    ORPHANED = 75  # the parent is gone
    INPUT = 78  # what the user gave is wrong: said in Goodbye


def describe(error: InputError) -> str:
    """The error as the reason of a Goodbye."""
    kind, message, hint = type(error).__name__, error.message, error.hint or ""
    message, hint = message[:MAX_MESSAGE], hint[:MAX_HINT]
    while True:
        text = PREFIX + json.dumps([kind, message, hint], ensure_ascii=False)
        if len(text.encode()) <= MAX_MESSAGE + MAX_HINT or not (message or hint):
            return text
        message, hint = message[: len(message) * 9 // 10], hint[: len(hint) * 9 // 10]


def parse(reason: str) -> InputError | None:
    """The error that ``describe`` was given; None if the reason is something else."""
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
