"""What clients send: OpenAI's request bodies, as far as agents can honour them.

Fields that would change the answer and cannot be honoured (tools, several choices, forced JSON) are
refused, never ignored. Fields that change nothing here (``user``, ``metadata``, ``store``) pass.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentwire.runtime.call_options import GENERATED_TOKENS, GenerationOptions

MAX_MESSAGES: Final = 1024
UNSUPPORTED: Final = {
    "tools": "tool calls",
    "functions": "tool calls",
    "audio": "audio",
    "web_search_options": "web search",
    "suffix": "text after the answer",
    "echo": "repeating the prompt",
    "logprobs": "log-probabilities of tokens (label scores come as `agentwire.scores`)",
    "logit_bias": "a bias of tokens",
    "prediction": "predicted outputs",
}
Seconds = Annotated[float, Field(gt=0, le=3600)]


class TextPart(BaseModel):
    """One part of a message's content; agents read text alone."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """Its content as one string."""
        return "\n".join(self.parts)

    @property
    def parts(self) -> list[str]:
        """The texts of its content parts; content that is one string is one."""
        if isinstance(self.content, list):
            return [part.text for part in self.content]
        return [self.content or ""]


class Extension(BaseModel):
    """``agentwire`` in a request body: what OpenAI's API has no words for.

    Attributes:
        prompt: what the receiver is asked about the payload.
        labels: the answer is one of these words; empty: free text, whatever the scenario's task.
        fallback: where soft tokens cannot be had: relay as ``text``, or answer with an ``error``.
        channel: ``text``: do not even try soft tokens.
        bridge: the wire's bridge must be this one.
        keep: answer with a handle of the payload instead of asking the receiver.
        timeout: seconds; the gateway's own limit holds as well.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    labels: list[str] | None = None
    fallback: Literal["text", "error"] | None = None
    channel: Literal["soft", "text"] | None = None
    bridge: str | None = None
    keep: bool = False
    timeout: Seconds | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of completion share."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=65_536)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    agentwire: Extension = Field(default_factory=Extension)

    @model_validator(mode="after")
    def _refuses_what_it_would_have_to_ignore(self) -> Request:
        extra = self.model_extra or {}
        for name, what in UNSUPPORTED.items():
            if extra.get(name):
                raise ValueError(f"{name}: {what} cannot be had from these agents")
        if _kind(extra.get("response_format")) not in (None, "text"):
            raise ValueError("response_format: only text can be had from these agents")
        for name in ("presence_penalty", "frequency_penalty"):
            if extra.get(name):
                raise ValueError(f"{name}: penalties are not supported")
        return self

    def options(self) -> GenerationOptions:
        """How the answer is generated. OpenAI's default temperature is 1; here it is 0.

        Raises:
            ScenarioError: a stop string that is not possible.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        seed = None if self.seed is None else self.seed % 2**32
        return GenerationOptions(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or GENERATED_TOKENS,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed,
            stop=tuple(stop),
        )


class ChatRequest(Request):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


class CompletionRequest(Request):
    """Body of ``/v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _streams_one_prompt(self) -> CompletionRequest:
        if self.stream and isinstance(self.prompt, list) and len(self.prompt) > 1:
            raise ValueError("stream: one prompt at a time can be streamed")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def _kind(response_format: Any) -> Any:
    return response_format.get("type") if isinstance(response_format, dict) else response_format
