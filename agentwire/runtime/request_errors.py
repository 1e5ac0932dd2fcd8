"""Errors that end a request without an answer, and what becomes of a refused row."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from agentwire.errors import NackCode, RequestError
from agentwire.wire.limits import LIMITS
from agentwire.wire.messages import Channel

RETRY_AFTER_S: Final = 1.0
"""Suggested pause while nothing is known of the completion rate."""


def down_error(agent: str, reason: str) -> RequestError:
    return RequestError(
        NackCode.AGENT_DOWN,
        f"Agent {agent} is down: {reason}.",
        hint="Read its log in the run's folder (logs/).",
    )


def dead_letter_error(request_id: bytes, agent: str, reason: str) -> RequestError:
    return RequestError(
        NackCode.DEAD_LETTER,
        f"Request {request_id.hex()} was in flight when {agent} died, twice. It is not sent again "
        f"(last death: {reason}).",
        hint=f"Check the request's text and {agent}'s log.",
    )


def overloaded_error(outstanding: int) -> RequestError:
    return RequestError(
        NackCode.OVERLOADED,
        f"Too many requests: {outstanding} are outstanding.",
        hint="Wait for answers before sending more.",
        retry_after_s=RETRY_AFTER_S,
    )


def deadline_error(request_id: bytes, wire: str, *, sent: bool) -> RequestError:
    """At the deadline; a request that was never ``sent`` found no room on its wire."""
    if sent:
        return RequestError(
            NackCode.DEADLINE,
            f"Request {request_id.hex()} was not answered before its deadline.",
            hint="Raise the deadline, or send less at once.",
        )
    return RequestError(
        NackCode.OVERLOADED,
        f"Request {request_id.hex()} could not be sent before its deadline: wire {wire} is full.",
        hint="Send less at once, or raise the deadline.",
        retry_after_s=RETRY_AFTER_S,
    )


def bad_text_error(text: object, index: int) -> RequestError:
    """``index``: of the text in its call."""
    what = "half of a surrogate pair" if isinstance(text, str) else type(text).__name__
    return RequestError(
        NackCode.MALFORMED,
        f"Text {index} of the call is not a text of characters: it is or holds {what}.",
        hint="Give a str that can be written as UTF-8.",
    )


def long_text_error(size: int, index: int) -> RequestError:
    return RequestError(
        NackCode.TOO_LARGE,
        f"Text {index} of the call has {size:,} bytes; {LIMITS.text_row_bytes:,} are allowed.",
        hint="Shorten it, or send its parts.",
    )


def long_question_error(question: str, index: int) -> RequestError:
    size = len(question.encode())
    return RequestError(
        NackCode.TOO_LARGE,
        f"Question {index} of the call has {size:,} bytes; {LIMITS.question_bytes:,} are allowed.",
        hint="Shorten it, or put it into the text.",
    )


class AfterNack(StrEnum):
    FAIL = "fail"  # the Nack is the row's outcome
    AS_TEXT = "as_text"  # resend on the text channel
    LATER = "later"  # resend unchanged after a pause


# The refusal says nothing about the row itself. A row of an agent that is shutting down goes to its
# next incarnation; a stale one belonged to an incarnation that is gone; a task that the bus has
# dropped is defined again.
_LATER = frozenset(
    {NackCode.OVERLOADED, NackCode.CLOSING, NackCode.STALE_EPOCH, NackCode.UNKNOWN_TASK}
)
# The text channel of the same wire would fail in the same way.
_FINAL = frozenset(
    {
        NackCode.TOO_LARGE,  # the agent's own policy for long texts, or too much for any model
        NackCode.DEADLINE,
        NackCode.CANCELLED,
        NackCode.DEAD_LETTER,
        NackCode.AGENT_DOWN,
        NackCode.VERSION,
        NackCode.UNAUTHORIZED,
        NackCode.UNKNOWN_WIRE,
        NackCode.EXPIRED,
    }
)


def after_nack(code: NackCode, *, channel: Channel, policy: Literal["text", "error"]) -> AfterNack:
    """What to do with a row that was refused on ``channel``; ``policy`` is its fallback."""
    if code in _LATER:
        return AfterNack.LATER
    if code in _FINAL or channel is Channel.TEXT or policy == "error":
        return AfterNack.FAIL
    return AfterNack.AS_TEXT
