"""What the client does with a row that an agent or the broker refused."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from agentwire.errors import NackCode
from agentwire.wire.messages import Channel


class AfterNack(StrEnum):
    FAIL = "fail"  # the Nack is the row's outcome
    AS_TEXT = "as_text"  # resend on the text channel
    LATER = "later"  # resend unchanged after a pause


# The refusal says nothing about the row itself. A row of an agent that is shutting down goes to its
# next incarnation; a stale one belonged to an incarnation that is gone.
_LATER = frozenset({NackCode.OVERLOADED, NackCode.CLOSING, NackCode.STALE_EPOCH})
# The text channel of the same wire would fail in the same way.
_FINAL = frozenset(
    {
        NackCode.DEADLINE,
        NackCode.CANCELLED,
        NackCode.DEAD_LETTER,
        NackCode.AGENT_DOWN,
        NackCode.VERSION,
        NackCode.UNAUTHORIZED,
        NackCode.UNKNOWN_WIRE,
        NackCode.UNKNOWN_TASK,
        NackCode.EXPIRED,
    }
)


def after_nack(code: NackCode, *, channel: Channel, policy: Literal["text", "error"]) -> AfterNack:
    """The client's decision for a refused row.

    Args:
        code: why it was refused.
        channel: of the refused attempt.
        policy: the row's fallback.
    """
    if code in _LATER:
        return AfterNack.LATER
    if code in _FINAL or channel is Channel.TEXT or policy == "error":
        return AfterNack.FAIL
    return AfterNack.AS_TEXT
