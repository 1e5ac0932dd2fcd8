"""Chat requests with OpenAI's field names.

Fields that would change the answer but are not supported (tools, several choices, forced JSON)
are refused. Fields that change nothing (``user``, ``metadata``, ``store``) are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentwire.chat.errors import ChatError, invalid
from agentwire.runtime.call_options import GENERATED_TOKENS, GenerationOptions

MAX_MESSAGES: Final = 1024
UNSUPPORTED: Final = {
    "tools": "tool calls are not supported",
    "functions": "tool calls are not supported",
    "audio": "audio is not supported",
    "web_search_options": "web search is not supported",
    "suffix": "text after the answer is not supported",
    "echo": "repeating the prompt is not supported",
    "logprobs": "token log-probabilities are not supported; label scores are in `agentwire.scores`",
    "logit_bias": "token biases are not supported",
    "prediction": "predicted outputs are not supported",
    "presence_penalty": "penalties are not supported",
    "frequency_penalty": "penalties are not supported",
}
Seconds = Annotated[float, Field(gt=0, le=3600)]
TokenCount = Annotated[int, Field(ge=1, le=65_536)]


class TextPart(BaseModel):
    """One part of a message's content. Agents read only text."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

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


class ChatOptions(BaseModel):
    """Which model answers, and how."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    agentwire: WireExtension = Field(default_factory=WireExtension)

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> ChatOptions:
        extra = self.model_extra or {}
        for name, problem in UNSUPPORTED.items():
            if extra.get(name):
                raise ValueError(f"{name}: {problem}")
        response_format = extra.get("response_format")
        if isinstance(response_format, dict):
            response_format = response_format.get("type")
        if response_format not in (None, "text"):
            raise ValueError("response_format: only text is supported")
        return self

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
    first: Any = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    message = first["msg"].removeprefix("Value error, ")
    if param is None and first["type"] == "value_error" and ": " in message:
        param = message.split(": ")[0]
    if param is not None and not message.startswith(f"{param}:"):
        message = f"{param}: {message}"
    return invalid(param, message)
