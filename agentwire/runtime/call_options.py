"""The options of a call, and how they become a task, a deadline and request ids."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, TypedDict, cast

from agentwire.bridge.card import CardReader
from agentwire.errors import ScenarioError
from agentwire.runtime.reply import KeptPayload
from agentwire.wire.limits import LIMITS
from agentwire.wire.messages import QUESTION, Channel, Decoding, Mode, RelaySpec, TaskSpec

ChannelName: TypeAlias = Channel | Literal["soft", "text"]
Fallback: TypeAlias = Literal["text", "error"]
RelayMode: TypeAlias = Literal["summary", "verbatim"] | RelaySpec
TextForm: TypeAlias = Literal["text", "plain", "chat"]

GENERATED_TOKENS: Final = 64
"""Default length limit of a free-text answer."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How a free-text answer is generated.

    Attributes:
        max_new_tokens: length limit, in the receiver's tokens.
        temperature: 0 to 10; 0 is greedy.
        top_p: sample from the most probable tokens that together have this probability.
        seed: of the sampling; the same seed gives the same answer. None draws a new seed for each
            call if the temperature is above 0.
        stop: up to 8 strings; the answer ends before the first that appears.

    Raises:
        ScenarioError: a value is out of range.
    """

    max_new_tokens: int = GENERATED_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, value, expected, valid in (
            ("max_new_tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1),
            ("temperature", self.temperature, "0 to 10", 0 <= self.temperature <= 10),
            ("top_p", self.top_p, "above 0, at most 1", 0 < self.top_p <= 1),
            ("seed", self.seed, "0 to 2**32 - 1", self.seed is None or 0 <= self.seed < 2**32),
            (
                "stop",
                self.stop,
                "up to 8 strings of 1 to 256 bytes",
                len(self.stop) <= 8
                and all(_is_text(s) and 0 < len(s.encode()) <= 256 for s in self.stop),
            ),
        ):
            if not valid:
                raise ScenarioError(
                    f"generate: {name} is out of range, got {value!r}.", hint=f"Give {expected}."
                )

    def decoding(self, *, stream: bool) -> Decoding:
        """The options as messages carry them."""
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


def _is_text(value: object) -> bool:
    """Whether it is a string without halves of surrogate pairs."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


Generate: TypeAlias = int | GenerationOptions

KEEP: Final = TaskSpec("keep", "", "{text}")
"""The task of a request that only keeps a payload: it asks nothing."""


class CallOptions(TypedDict, total=False):
    """Options of a call to one agent (see ``Runtime.send``)."""

    prompt: str | None
    question: str | Sequence[str] | None
    labels: Sequence[str] | None
    generate: Generate | None
    deadline: float | None
    form: TextForm | None


class KeepOptions(TypedDict, total=False):
    """Options of a call that keeps a payload (see ``Runtime.send``)."""

    bridge: str | None
    fallback: Fallback | None
    channel: ChannelName | None
    deadline: float | None


class WireOptions(CallOptions, total=False):
    """Options of a call over a wire (see ``Runtime.send``)."""

    bridge: str | None
    fallback: Fallback | None
    channel: ChannelName | None
    relay: RelayMode | None


def with_question(options: WireOptions, reader: CardReader | None) -> WireOptions:
    """The options of a call over a wire with a reader bridge, whose prompt is a question."""
    prompt = options.get("prompt")
    if reader is None or not prompt or QUESTION in prompt or options.get("question") is not None:
        return options
    asked: WireOptions = {**options, "prompt": reader.question, "question": prompt}
    # A summary was made for no question, and may lack the answer.
    asked["relay"] = options.get("relay") or "verbatim"
    if options.get("labels") is None:
        generate = options.get("generate") or GENERATED_TOKENS
        if isinstance(generate, int):
            generate = GenerationOptions(generate)
        stop = dict.fromkeys((*generate.stop, *reader.stop))
        asked["generate"] = replace(generate, stop=tuple(stop)[: LIMITS.stops])
    return asked


def row_questions(
    question: str | Sequence[str] | None, task: TaskSpec, count: int
) -> list[str] | None:
    """The question of each of ``count`` rows; None if the task has no ``{question}``. Raises a
    ScenarioError if questions are missing, empty, or not wanted."""
    wanted = QUESTION in task.prompt or QUESTION in task.text_prompt
    if question is None and wanted:
        raise ScenarioError(
            "The prompt contains {question}, but the call has no question.",
            hint="Give `question`: one for all texts, or one for each.",
        )
    if question is None:
        return None
    if not wanted:
        raise ScenarioError(
            "The call has a question, but its prompt has no {question}.",
            hint='Write it into the prompt, as in "\\nQuestion: {question}\\nAnswer:".',
        )
    questions = [question] * count if isinstance(question, str) else list(question)
    if len(questions) != count:
        raise ScenarioError(
            f"{len(questions)} questions for {count} texts.",
            hint="Give one for all texts, or one for each.",
        )
    for one in questions:
        if not (_is_text(one) and one):
            raise ScenarioError(
                f"A question is empty or not a text of characters: {one!a:.80}.",
                hint="Give strings that can be written as UTF-8.",
            )
    return questions


def make_task(
    default: TaskSpec | None,
    options: CallOptions,
    relay: RelayMode | None = None,
    *,
    stream: bool = False,
) -> TaskSpec:
    """The task of one call: the scenario's (``default``), changed by the call's options. Raises a
    ScenarioError if neither has a prompt, or if options contradict each other.
    """
    prompt, labels, generate = options.get("prompt"), options.get("labels"), options.get("generate")
    if labels is not None and generate is not None:
        raise ScenarioError(
            "labels and generate exclude each other.",
            hint="Give labels to choose between words, or generate for free text.",
        )
    if isinstance(labels, str) or (labels is not None and len(labels) < 2):
        raise ScenarioError(
            "labels must be a list of two words or more.", hint='For example ["good", "bad"].'
        )
    for text in ("" if prompt is None else prompt, *(labels or ())):
        if not _is_text(text):
            raise ScenarioError(
                f"The prompt or a label is not a text of characters: {text!a:.80}.",
                hint="Give strings that can be written as UTF-8.",
            )
    if isinstance(generate, int):
        generate = GenerationOptions(generate)
    max_new_tokens = generate.max_new_tokens if generate else None
    if prompt is not None:
        task = _prompt_task(prompt, labels, max_new_tokens)
    elif default is None:
        raise ScenarioError(
            "The call has no prompt and the scenario has no task.",
            hint="Give a prompt (and labels), or add a task to the scenario.",
        )
    elif labels is not None:
        task = replace(default, labels=tuple(labels), max_new_tokens=0)
    elif max_new_tokens is not None:
        task = replace(default, labels=(), max_new_tokens=max_new_tokens)
    else:
        task = default
    if (form := options.get("form")) is not None:
        task = replace(task, form=form)
    if not task.labels:
        generate = generate or GenerationOptions(
            max(1, task.max_new_tokens), stop=task.decoding.stop
        )
        task = replace(task, decoding=generate.decoding(stream=stream))
    if isinstance(relay, RelaySpec):
        task = replace(task, relay=relay)
    elif relay == "verbatim":
        task = replace(task, relay=replace(task.relay, template=""))
    return task


def _prompt_task(prompt: str, labels: Sequence[str] | None, max_new_tokens: int | None) -> TaskSpec:
    if "{text}" in prompt:
        raise ScenarioError(
            "A prompt cannot contain {text}: the soft tokens, or the text, come before it.",
            hint="Write only what follows the text.",
        )
    default_tokens = GENERATED_TOKENS if labels is None else 0
    gap = "" if not prompt or (QUESTION in prompt and prompt.startswith("\n")) else "\n"
    return TaskSpec(
        name="prompt",
        prompt=prompt,
        text_prompt="{text}" + gap + prompt,
        labels=tuple(labels or ()),
        relay=RelaySpec(),
        max_new_tokens=max_new_tokens or default_tokens,
    )


def check_deadline(deadline: float | None, default: float) -> float:
    """Seconds that a request may take; raises a ScenarioError if they are not positive."""
    seconds = default if deadline is None else deadline
    if not seconds > 0:  # also catches NaN
        raise ScenarioError(
            f"deadline must be positive, got {seconds:g}.", hint="Give it in seconds."
        )
    return seconds


def parse_request_ids(request_ids: Sequence[str] | None, count: int) -> list[bytes] | None:
    """The ids of ``count`` requests as bytes; None if the caller gave none."""
    if request_ids is None:
        return None
    if len(request_ids) != count:
        raise ScenarioError(
            f"{len(request_ids)} request ids for {count} texts.", hint="Give one for each text."
        )
    for digits in request_ids:
        if not (isinstance(digits, str) and re.fullmatch("[0-9a-fA-F]{32}", digits)):
            raise ScenarioError(
                f"The request id {digits!r} is not 32 hex digits.", hint="Use uuid.uuid4().hex."
            )
    return [bytes.fromhex(digits) for digits in request_ids]


def row_contents(
    sender: str, receiver: str, texts: Sequence[str | KeptPayload]
) -> tuple[list[str], Mode, list[str] | None]:
    """What the rows of a message carry: the texts, or the ids of kept payloads and the processes
    that have them. Raises a ScenarioError for a mixture, or a payload kept for another wire.
    """
    kept: list[KeptPayload] = []
    for text in texts:
        if isinstance(text, KeptPayload):
            kept.append(text)
    if not kept:
        # Whatever else is among them is refused by the client, alone.
        return cast(list[str], list(texts)), Mode.FORWARD, None
    if len(kept) != len(texts):
        raise ScenarioError(
            "One call cannot mix texts and kept payloads.", hint="Send them in two calls."
        )
    for payload in kept:
        if (payload.sender, payload.receiver) != (sender, receiver):
            raise ScenarioError(
                f"A payload kept for {payload.sender}->{payload.receiver} cannot be sent on "
                f"{sender}->{receiver}: each bridge writes for one receiver.",
                hint=f"Call keep({sender!r}, {receiver!r}, …) and send its result.",
            )
    return [payload.request_id for payload in kept], Mode.KEPT, [p.process for p in kept]
