"""AutoGen: a model client whose messages cross a wire (extra ``agentwire[autogen]``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Literal

from autogen_core import CancellationToken
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelFamily,
    ModelInfo,
    RequestUsage,
    SystemMessage,
    UserMessage,
)

from agentwire.adapters.local import LocalAgents, Turn
from agentwire.chat.answers import Answer
from agentwire.errors import InputError

BYTES_PER_TOKEN = 4


class AgentwireClient(ChatCompletionClient):
    """One model of a scenario.

    Args:
        agents: started; not closed with the client, since several share them.
        model: one of ``agents.models``.
        context_tokens: what ``remaining_tokens`` counts down from.
        fields: of every request: ``max_tokens``, ``agentwire={"labels": …}``, ….
    """

    component_type = "model"

    def __init__(
        self, agents: LocalAgents, model: str, *, context_tokens: int = 2048, **fields: Any
    ) -> None:
        self._agents = agents
        self._model = model
        self._context = context_tokens
        self._fields = fields
        self._last = RequestUsage(0, 0)
        self._total = RequestUsage(0, 0)

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Any] = (),
        tool_choice: Any = "auto",
        json_output: Any = None,
        extra_create_args: Mapping[str, Any] = {},
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:
        refuse(tools, json_output)
        fields = {**self._fields, **extra_create_args}
        call = asyncio.ensure_future(self._agents.aask(self._model, turns_of(messages), **fields))
        if cancellation_token is not None:
            cancellation_token.link_future(call)
        return self._result(await call)

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Any] = (),
        tool_choice: Any = "auto",
        json_output: Any = None,
        extra_create_args: Mapping[str, Any] = {},
        cancellation_token: CancellationToken | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        refuse(tools, json_output)
        fields = {**self._fields, **extra_create_args}
        async for piece in self._agents.astream(self._model, turns_of(messages), **fields):
            if cancellation_token is not None and cancellation_token.is_cancelled():
                raise asyncio.CancelledError
            yield piece if isinstance(piece, str) else self._result(piece)

    def _result(self, answer: Answer) -> CreateResult:
        read, written = answer.usage["prompt_tokens"], answer.usage["completion_tokens"]
        self._last = RequestUsage(read, written)
        self._total = RequestUsage(
            self._total.prompt_tokens + read, self._total.completion_tokens + written
        )
        finish: Literal["stop", "length"] = "length" if answer.finish == "length" else "stop"
        return CreateResult(
            finish_reason=finish, content=answer.text, usage=self._last, cached=False
        )

    async def close(self) -> None:
        """The agents live on: other clients share them."""

    def actual_usage(self) -> RequestUsage:
        return self._last

    def total_usage(self) -> RequestUsage:
        return self._total

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Any] = ()) -> int:
        """An estimate from the length of the text: tokenizers live in the agents' processes."""
        size = sum(len(text.encode()) for _, text in turns_of(messages))
        return -(-size // BYTES_PER_TOKEN)

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Any] = ()) -> int:
        return self._context - self.count_tokens(messages)

    @property
    def capabilities(self) -> ModelInfo:  # deprecated by the framework, still abstract
        return self.model_info

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(
            vision=False,
            function_calling=False,
            json_output=False,
            structured_output=False,
            family=ModelFamily.UNKNOWN,
            multiple_system_messages=True,
        )


def refuse(tools: Sequence[Any], json_output: Any) -> None:
    """
    Raises:
        InputError: something is asked for that these agents cannot do.
    """
    if tools or json_output:
        raise InputError(
            "agents of agentwire call no tools and are not held to JSON.",
            hint="Give such work to another model of the team.",
        )


def turns_of(messages: Sequence[LLMMessage]) -> list[Turn]:
    """The conversation as agents read it.

    Raises:
        InputError: a message that is not text.
    """
    turns: list[Turn] = []
    for message in messages:
        known = {SystemMessage: "system", UserMessage: "user", AssistantMessage: "assistant"}
        role = known.get(type(message))
        content: Any = message.content
        if isinstance(content, list) and all(isinstance(part, str) for part in content):
            content = "\n".join(content)
        if role is None or not isinstance(content, str):
            raise InputError(
                f"agents read text alone, not a {type(message).__name__} like this.",
                hint="Leave images and function calls out.",
            )
        turns.append((role, content))
    return turns
