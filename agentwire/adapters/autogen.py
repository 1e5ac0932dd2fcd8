"""A model client for AutoGen (extra ``agentwire[autogen]``)."""

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

from agentwire.adapters.local import LocalAgents, Turn, text_turn
from agentwire.chat.service import ChatReply
from agentwire.errors import InputError

BYTES_PER_TOKEN = 4
ROLES = {SystemMessage: "system", UserMessage: "user", AssistantMessage: "assistant"}


class AgentwireClient(ChatCompletionClient):
    """One model of a scenario.

    Args:
        agents: started agents. Several clients can share them, so the client never closes them.
        model: one of ``agents.models``.
        context_tokens: the context size that ``remaining_tokens`` assumes.
        fields: sent with every request: ``max_tokens``, ``agentwire={"labels": …}``, ….
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
        fields = self._request_fields(tools, tool_choice, json_output, extra_create_args)
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
        fields = self._request_fields(tools, tool_choice, json_output, extra_create_args)
        async for piece in self._agents.astream(self._model, turns_of(messages), **fields):
            if cancellation_token is not None and cancellation_token.is_cancelled():
                raise asyncio.CancelledError
            yield piece if isinstance(piece, str) else self._result(piece)

    def _request_fields(
        self, tools: Sequence[Any], tool_choice: Any, json_output: Any, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        if tools or json_output or tool_choice not in ("auto", "none"):
            raise InputError(
                "agentwire agents do not support tools or JSON output.",
                hint="Use another model of the team for this work.",
            )
        return {**self._fields, **extra}

    def _result(self, reply: ChatReply) -> CreateResult:
        self._last = RequestUsage(reply.usage["prompt_tokens"], reply.usage["completion_tokens"])
        self._total = RequestUsage(
            self._total.prompt_tokens + self._last.prompt_tokens,
            self._total.completion_tokens + self._last.completion_tokens,
        )
        finish: Literal["stop", "length"] = "length" if reply.finish_reason == "length" else "stop"
        return CreateResult(
            finish_reason=finish, content=reply.text, usage=self._last, cached=False
        )

    async def close(self) -> None:
        """Does nothing: other clients may share the agents."""

    def actual_usage(self) -> RequestUsage:
        return self._last

    def total_usage(self) -> RequestUsage:
        return self._total

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Any] = ()) -> int:
        """An estimate from the length of the text: only the agent processes have tokenizers."""
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


def turns_of(messages: Sequence[LLMMessage]) -> list[Turn]:
    """Raises InputError if a message is not text."""
    turns: list[Turn] = []
    for message in messages:
        content: Any = message.content
        parts = content if isinstance(content, list) else [content]
        turns.append(text_turn(ROLES.get(type(message)), parts, type(message).__name__))
    return turns
