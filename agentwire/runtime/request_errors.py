"""The outcomes of requests that have no answer, in words that say what to do next."""

from __future__ import annotations

from typing import Final

from agentwire.errors import NackCode, RequestError


def down_error(agent: str, reason: str) -> RequestError:
    """To an agent that is gone for good."""
    return RequestError(
        NackCode.AGENT_DOWN,
        f"The agent {agent} is down: {reason}.",
        hint="Its log in the run's folder (logs/) says why.",
    )


def dead_letter_error(request_id: bytes, agent: str, reason: str) -> RequestError:
    """Of a request that was in flight at two deaths of an agent."""
    return RequestError(
        NackCode.DEAD_LETTER,
        f"Request {request_id.hex()} was in flight at two deaths of {agent} and is not sent "
        f"again (last: {reason}).",
        hint=f"See what is special about its text; {agent}'s log may say more.",
    )


RETRY_AFTER_S: Final = 1.0
"""Where nothing is known of how fast requests end."""


def full_error(outstanding: int) -> RequestError:
    """Where too much is outstanding."""
    return RequestError(
        NackCode.OVERLOADED,
        f"{outstanding} requests are outstanding, no more are taken.",
        hint="Wait for answers before you send more.",
        retry_after_s=RETRY_AFTER_S,
    )


def late_error(request_id: bytes, wire: str, *, sent: bool) -> RequestError:
    """At the deadline; a request that was never ``sent`` found no room on its wire."""
    if sent:
        return RequestError(
            NackCode.DEADLINE,
            f"Request {request_id.hex()} was not answered in time.",
            hint="Allow more time (deadline), or send less at once.",
        )
    return RequestError(
        NackCode.OVERLOADED,
        f"Request {request_id.hex()}: no room on {wire} in time.",
        hint="Send less at once, or allow more time (deadline).",
        retry_after_s=RETRY_AFTER_S,
    )
