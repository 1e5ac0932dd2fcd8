"""What a caller asks -> the task that messages name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, TypeAlias, TypedDict

from agentwire.errors import ScenarioError
from agentwire.wire.messages import Channel, RelaySpec, TaskSpec

ChannelName: TypeAlias = Channel | Literal["soft", "text"]
Fallback: TypeAlias = Literal["text", "error"]
Relay: TypeAlias = Literal["summary", "verbatim"]

GENERATED_TOKENS: Final = 64
"""Longest answer where a prompt without labels does not say."""


class Question(TypedDict, total=False):
    """What a call to one agent may say (``Runtime.send`` explains each)."""

    prompt: str | None
    labels: Sequence[str] | None
    generate: int | None
    deadline: float | None


class WireQuestion(Question, total=False):
    """What a call over a wire may say (``Runtime.send`` explains each)."""

    bridge: str | None
    fallback: Fallback | None
    channel: ChannelName | None
    relay: Relay | None


def make_task(
    default: TaskSpec | None,
    *,
    prompt: str | None = None,
    labels: Sequence[str] | None = None,
    generate: int | None = None,
    relay: Relay | None = None,
) -> TaskSpec:
    """The task of one call.

    Args:
        default: the scenario's task; what the call does not say comes from it.
        prompt: what the receiver is asked, after the soft tokens or after the text.
        labels: the answer is one of these words.
        generate: the answer is free text of at most so many tokens.
        relay: ``verbatim``: on the text channel the text itself crosses, not what the sender
            makes of it.

    Raises:
        ScenarioError: neither the call nor the scenario says what is asked, or both labels and
            free text are.
    """
    if labels is not None and generate is not None:
        raise ScenarioError(
            "labels and generate exclude each other.",
            hint="Give labels for a choice between words, or generate for free text.",
        )
    if isinstance(labels, str) or (labels is not None and len(labels) < 2):
        raise ScenarioError("labels needs two words or more.", hint='Give a list: ["good", "bad"].')
    if generate is not None and generate < 1:
        raise ScenarioError(
            "generate must be 1 or more.", hint="It is the longest answer in tokens."
        )
    task = _asked(default, prompt, labels, generate)
    if relay == "verbatim":
        task = replace(task, relay=replace(task.relay, template=""))
    return task


def _asked(
    default: TaskSpec | None, prompt: str | None, labels: Sequence[str] | None, generate: int | None
) -> TaskSpec:
    if prompt is not None:
        if "{text}" in prompt:
            raise ScenarioError(
                "A prompt cannot hold {text}: the soft tokens, or the text, stand before it.",
                hint="Write only what follows the text.",
            )
        free = GENERATED_TOKENS if labels is None else 0
        return TaskSpec(
            name="prompt",
            prompt=prompt,
            text_prompt="{text}\n" + prompt,
            labels=tuple(labels or ()),
            relay=RelaySpec(),
            max_new_tokens=generate or free,
        )
    if default is None:
        raise ScenarioError(
            "Nothing says what the receiver is asked.",
            hint="Give a prompt (and labels), or a task in the scenario.",
        )
    if labels is not None:
        return replace(default, labels=tuple(labels), max_new_tokens=0)
    if generate is not None:
        return replace(default, labels=(), max_new_tokens=generate)
    return default


def check_deadline(deadline: float | None, default: float) -> float:
    """Seconds that a request may take.

    Raises:
        ScenarioError: none at all.
    """
    seconds = default if deadline is None else deadline
    if not seconds > 0:
        raise ScenarioError(f"The deadline {seconds} s is over.", hint="Give seconds above 0.")
    return seconds


def parse_request_ids(request_ids: Sequence[str] | None, count: int) -> list[bytes] | None:
    """16 bytes for each of ``count`` requests; None where the caller gave none.

    Raises:
        ScenarioError: not one for each, or one is not 32 hex digits.
    """
    if request_ids is None:
        return None
    if len(request_ids) != count:
        raise ScenarioError(
            f"{len(request_ids)} request ids for {count} texts.", hint="Give one for each text."
        )
    return [_request_id(digits) for digits in request_ids]


def _request_id(digits: str) -> bytes:
    try:
        request_id = bytes.fromhex(digits)
    except ValueError:
        request_id = b""
    if len(request_id) != 16:
        raise ScenarioError(
            f"The request id {digits!r} is not 32 hex digits.", hint="uuid.uuid4().hex makes one."
        )
    return request_id


def only(request_id: str | None) -> list[str] | None:
    """The ids of a batch of one."""
    return None if request_id is None else [request_id]
