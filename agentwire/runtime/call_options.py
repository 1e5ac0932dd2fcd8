"""What a caller asks -> the task that messages name."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, TypedDict

from agentwire.errors import ScenarioError
from agentwire.runtime.reply import KeptPayload
from agentwire.wire.messages import Channel, Decoding, Mode, RelaySpec, TaskSpec

ChannelName: TypeAlias = Channel | Literal["soft", "text"]
Fallback: TypeAlias = Literal["text", "error"]
Relay: TypeAlias = Literal["summary", "verbatim"]
Form: TypeAlias = Literal["text", "plain", "chat"]

GENERATED_TOKENS: Final = 64
"""Longest answer where a prompt without labels does not say."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How an answer in free text is generated.

    Attributes:
        max_new_tokens: longest answer, in the receiver's tokens.
        temperature: 0: greedy; at most 10.
        top_p: tokens are drawn from the most probable ones that together have this probability.
        seed: of the draws; the same seed gives the same answer. None: greedy needs none, and a
            temperature above 0 draws anew each time.
        stop: up to 8 strings; the answer ends before the first that appears.

    Raises:
        ScenarioError: a value that is not possible.
    """

    max_new_tokens: int = GENERATED_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, value, wanted, good in (
            ("max_new_tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1),
            ("temperature", self.temperature, "0 to 10", 0 <= self.temperature <= 10),
            ("top_p", self.top_p, "above 0, at most 1", 0 < self.top_p <= 1),
            ("seed", self.seed, "0 to 2**32 - 1", self.seed is None or 0 <= self.seed < 2**32),
            (
                "stop",
                self.stop,
                "up to 8 strings of 1 to 256 bytes",
                len(self.stop) <= 8 and all(0 < len(s.encode()) <= 256 for s in self.stop),
            ),
        ):
            if not good:
                raise ScenarioError(f"generate: {name} is {value!r}.", hint=f"Give {wanted}.")

    def decoding(self, *, stream: bool) -> Decoding:
        """As messages carry it."""
        seed = self.seed
        if seed is None:
            seed = secrets.randbits(32) if self.temperature else 0
        return Decoding(
            temperature=round(self.temperature * 1000),
            top_p=max(1, round(self.top_p * 1000)),
            seed=seed,
            stop=tuple(self.stop),
            stream=stream,
        )


Generate: TypeAlias = int | GenerationOptions

KEEP: Final = TaskSpec("keep", "", "{text}")
"""What a sender is asked that keeps soft tokens: nothing yet."""


class CallOptions(TypedDict, total=False):
    """What a call to one agent may say (``Runtime.send`` explains each)."""

    prompt: str | None
    labels: Sequence[str] | None
    generate: Generate | None
    deadline: float | None
    form: Form | None


class KeepOptions(TypedDict, total=False):
    """What a call that keeps a payload may say (``Runtime.send`` explains each)."""

    bridge: str | None
    fallback: Fallback | None
    channel: ChannelName | None
    deadline: float | None


class WireOptions(CallOptions, total=False):
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
    generate: Generate | None = None,
    relay: Relay | None = None,
    form: Form | None = None,
    stream: bool = False,
) -> TaskSpec:
    """The task of one call.

    Args:
        default: the scenario's task; what the call does not say comes from it.
        prompt: what the receiver is asked, after the soft tokens or after the text.
        labels: the answer is one of these words.
        generate: the answer is free text: at most so many tokens, or all options.
        relay: ``verbatim``: on the text channel the text itself crosses, not what the sender
            makes of it.
        form: what a text is where the model reads it itself (``TaskSpec.form``).
        stream: free text is sent while it is generated.

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
    options = GenerationOptions(generate) if isinstance(generate, int) else generate
    task = _asked(default, prompt, labels, options.max_new_tokens if options else None)
    if form is not None:
        task = replace(task, form=form)
    if not task.labels:
        chosen = options or GenerationOptions(max(1, task.max_new_tokens))
        task = replace(task, decoding=chosen.decoding(stream=stream))
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
            text_prompt="{text}\n" + prompt if prompt else "{text}",
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


def names_of(
    sender: str, receiver: str, texts: Sequence[str | KeptPayload]
) -> tuple[list[str], Mode]:
    """What rows carry for these texts, all of one kind."""
    kept = [text for text in texts if isinstance(text, KeptPayload)]
    if not kept:
        return [text for text in texts if isinstance(text, str)], Mode.FORWARD
    if len(kept) != len(texts):
        raise ScenarioError(
            "One call cannot mix texts and kept payloads.", hint="Send them in two calls."
        )
    for payload in kept:
        if (payload.sender, payload.receiver) != (sender, receiver):
            raise ScenarioError(
                f"What was kept for {payload.sender}->{payload.receiver} cannot be sent on "
                f"{sender}->{receiver}.",
                hint="A bridge speaks one receiver's language: keep it on the wire you ask over.",
            )
    return [payload.request_id for payload in kept], Mode.KEPT


def processes_for(texts: Sequence[str | KeptPayload]) -> list[str]:
    """For each text the only process that can read it: of what is kept, the one that keeps it."""
    return [text.process if isinstance(text, KeptPayload) else "" for text in texts]


def over_wire(keep: KeepOptions) -> tuple[WireOptions, CallOptions]:
    """What a call that keeps a payload says of the wire, and of the answer."""
    over = WireOptions(
        bridge=keep.get("bridge"), fallback=keep.get("fallback"), channel=keep.get("channel")
    )
    return over, CallOptions(deadline=keep.get("deadline"))
