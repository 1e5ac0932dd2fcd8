"""What to do where soft tokens were asked for: the decision tables of both ends, without IO.

Sender (``decide``): soft tokens cross only if the receiver accepted this bridge, the bridge was
trained for this prompt, and the payload is sound. Everything else is a text relay or an error,
with the reason as a Nack code: never a silent wrong answer.

Client (``after_nack``): what becomes of a row that an agent or the broker refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from agentwire.errors import NackCode
from agentwire.wire.messages import BridgeIdentity, Channel, TaskSpec

Policy: TypeAlias = Literal["text", "error"]
ANY_PROMPT: Final = "any"
FREE_TEXT: Final = "free_text"


class BridgeState(StrEnum):
    """What the sender knows about the bridge of one wire."""

    NONE = "none"  # no bridge was configured
    OFFERED = "offered"  # the receiver has not answered yet
    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class UseSoft:
    """Send soft tokens."""


@dataclass(frozen=True, slots=True)
class UseText:
    """Relay as text, because of ``reason``."""

    reason: NackCode


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with a Nack."""

    code: NackCode


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait for the receiver's answer to the offer."""


Decision: TypeAlias = UseSoft | UseText | Refuse | Hold


def knows_prompt(bridge: BridgeIdentity, task: TaskSpec) -> bool:
    """Whether the bridge was trained for the task: its prompt and labels, or every such one.

    A bridge for any prompt has learned to answer with label words; generated text is another
    thing, and only a bridge that says ``free_text`` promises it. What asks nothing is looked at
    when something is asked.
    """
    return task.asks_nothing or knows_any(bridge.prompts, task)


def knows_any(prompts: Collection[str], task: TaskSpec) -> bool:
    """Whether a task is among these (``BridgeIdentity.prompts``)."""
    universal = ANY_PROMPT if task.labels else FREE_TEXT
    return universal in prompts or task.prompt_hash in prompts


def decide(
    state: BridgeState,
    *,
    prompt_known: bool,
    generates: bool,
    policy: Policy,
    payload_ok: bool = True,
) -> Decision:
    """The sender's decision for rows that ask for the soft channel.

    Args:
        state: of the wire's bridge.
        prompt_known: the bridge was trained for the task's prompt (``knows_prompt``).
        generates: the task wants free text; refused as such where the bridge does not know it.
        policy: the row's fallback.
        payload_ok: finite and of a sane size; known only after encoding, so True before.
    """
    if state is BridgeState.NONE:
        return _otherwise(policy, NackCode.NO_BRIDGE)
    if state is BridgeState.REFUSED:
        return _otherwise(policy, NackCode.BRIDGE_MISMATCH)
    if not prompt_known:
        code = NackCode.UNSUPPORTED if generates else NackCode.PROMPT_MISMATCH
        return _otherwise(policy, code)
    if state is BridgeState.OFFERED:
        return Hold()
    if not payload_ok:
        return _otherwise(policy, NackCode.BAD_PAYLOAD)
    return UseSoft()


def _otherwise(policy: Policy, code: NackCode) -> Decision:
    return UseText(code) if policy == "text" else Refuse(code)


class AfterNack(StrEnum):
    """What the client does with a refused row."""

    FAIL = "fail"  # the Nack is the row's outcome
    AS_TEXT = "as_text"  # send again on the text channel
    LATER = "later"  # send again unchanged, after a pause


# Waiting helps: the refusal says nothing about the row itself. A row of an agent that is closing
# is sent again to its next incarnation; a stale one belonged to an incarnation that is gone.
_LATER = frozenset({NackCode.OVERLOADED, NackCode.CLOSING, NackCode.STALE_EPOCH})
# The text channel of the same wire would end in the same way.
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


def after_nack(code: NackCode, *, channel: Channel, policy: Policy) -> AfterNack:
    """The client's decision for a refused row.

    Args:
        code: why it was refused.
        channel: the channel of the attempt that was refused.
        policy: the row's fallback.
    """
    if code in _LATER:
        return AfterNack.LATER
    if code in _FINAL or channel is Channel.TEXT or policy == "error":
        return AfterNack.FAIL
    return AfterNack.AS_TEXT
