"""Chat requests with OpenAI's field names.

A field that is not supported is refused by name, unless it or its value changes no answer.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agentwire.chat.errors import ChatError, invalid
from agentwire.runtime.call_options import GENERATED_TOKENS, GenerationOptions

MAX_MESSAGES: Final = 1024
_NEUTRAL_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "annotations bad_words functions stop_token_ids tool_calls tools": ([],),
    "continue_final_message echo ignore_eos include_stop_str_in_output use_beam_search": (False,),
    "logprobs": (False,),
    "add_generation_prompt skip_special_tokens spaces_between_special_tokens": (True,),
    "frequency_penalty min_p min_tokens presence_penalty top_logprobs": (0,),
    "best_of length_penalty repetition_penalty": (1,),
    "refusal suffix": ("",),
    "function_call tool_choice": ("none", "auto"),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"}, "text"),
    "top_k": (0, -1),
    "verbosity": ("medium",),
}
NEUTRAL: Final = {name: some for names, some in _NEUTRAL_VALUES.items() for name in names.split()}
"""Values of unsupported fields that change nothing."""
REASONS: Final = {
    "tools": "tool calls are not supported",
    "functions": "tool calls are not supported",
    "tool_calls": "tool calls are not supported",
    "logprobs": "token log-probabilities are not supported; label scores are in `agentwire.scores`",
    "response_format": "only text is supported",
}
Seconds = Annotated[float, Field(gt=0, le=3600)]
_UNION_MEMBER: Final = re.compile(r"str|list\[.*\]|constrained-.*|nullable.*")
TokenCount = Annotated[int, Field(ge=1, le=65_536)]


class KnownFields(BaseModel):
    """Refuses fields that it does not have, except those that change no answer."""

    model_config = ConfigDict(extra="allow")
    harmless: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value is not None and name not in self.harmless and not _is_neutral(name, value):
                reason = REASONS.get(name, "this field, or its value, is not supported")
                raise ValueError(f"{name[:80]}: {reason}")
        return self


def _is_neutral(name: str, value: Any) -> bool:
    # False == 0 in Python, but `logprobs: 0` asks for something and `logprobs: false` does not.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL.get(name, ())
    )


class TextPart(KnownFields):
    """One part of a message's content. Agents read only text."""

    harmless = frozenset({"cache_control"})

    type: Literal["text"]
    text: str


class ChatMessage(KnownFields):
    """One message of a conversation. ``name`` is accepted, because some clients always send it."""

    harmless = frozenset({"name", "tool_call_id"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _require_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError("content: expected a text, or a list of text parts")
        return self

    @property
    def text(self) -> str:
        """The content as one string."""
        return "\n".join(self.texts)

    @property
    def texts(self) -> list[str]:
        """The text of each content part; a single string counts as one part."""
        if isinstance(self.content, list):
            return [part.text for part in self.content]
        return [self.content or ""]


class WireExtension(BaseModel):
    """The field ``agentwire`` of a request: options that OpenAI's API does not have.

    Attributes:
        prompt: the question to the receiver about the payload.
        labels: the answer is one of these words; an empty list asks for free text.
        fallback: what happens without soft tokens: relay as ``text``, or fail with an ``error``.
        channel: ``text`` sends text without trying soft tokens.
        bridge: the wire must use this bridge.
        keep: answer with a handle of the payload and do not ask the receiver.
        timeout: seconds; the server's own limit applies too.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    labels: list[str] | None = None
    fallback: Literal["text", "error"] | None = None
    channel: Literal["soft", "text"] | None = None
    bridge: str | None = None
    keep: bool = False
    timeout: Seconds | None = None


class StreamOptions(KnownFields):
    """What a stream contains beside the text."""

    harmless = frozenset({"include_obfuscation"})

    include_usage: bool | None = None


class ChatOptions(KnownFields):
    """Which model answers, and how."""

    harmless = frozenset(
        {
            "cache_salt",
            "metadata",
            "parallel_tool_calls",
            "priority",
            "prompt_cache_key",
            "prompt_cache_retention",
            "request_id",
            "safety_identifier",
            "service_tier",
            "store",
            "user",
        }
    )

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    agentwire: WireExtension = Field(default_factory=WireExtension)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        given = [stop] if isinstance(stop, str) else stop or []
        if len(given) > 8 or not all(0 < len(one.encode()) <= 256 for one in given):
            raise ValueError("expected up to 8 strings of 1 to 256 bytes")
        return stop

    def generation(self) -> GenerationOptions:
        """How the answer is generated. The default temperature is 0; OpenAI's is 1."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerationOptions(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or GENERATED_TOKENS,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else self.seed % 2**32,
            stop=tuple(stop),
        )


class ChatRequest(ChatOptions):
    """A conversation and its options."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def invalid_request(error: ValidationError) -> ChatError:
    """The first validation error, with the field that is wrong."""
    # Of a value that may be a string or a list, the errors inside the list say more.
    found: Any = max(error.errors(include_url=False, include_input=False), key=_depth)
    path = [str(part) for part in found["loc"] if not _UNION_MEMBER.fullmatch(str(part))]
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "value_error" and ": " in message:
        field, message = message.split(": ", 1)
        path.append(field)
    param = ".".join(path) or None
    return invalid(param, message if param is None else f"{param}: {message}")


def _depth(error: Any) -> int:
    return len(error["loc"])
