"""A chat client for Microsoft's agent-framework (extra ``agentwire[agent-framework]``).

::

    with LocalAgents("scenario.yaml") as agents:
        judge = Agent(AgentwireChatClient(agents, "llama->mistral"))
        print(await judge.run("A moving, funny film."))

Only text travels on the edges of a workflow: a payload is passed as its handle, so checkpoints
hold no arrays. Channel, reason and times are in ``additional_properties["agentwire"]``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

from agent_framework import (
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    Message,
    ResponseStream,
    UsageDetails,
)

from agentwire.adapters.local import LocalAgents, Turn, text_turn
from agentwire.chat.service import ChatReply
from agentwire.errors import InputError

OPTIONS = {"max_tokens", "temperature", "top_p", "seed", "stop", "agentwire"}
ROLES = {"system", "developer", "user", "assistant", "tool"}
IGNORED = {"model", "user", "metadata", "store", "conversation_id", "instructions"}
"""Options of the framework that do not change the answer."""


class AgentwireChatClient(BaseChatClient):
    """One model of a scenario.

    Args:
        agents: started agents. Several clients can share them, so the client never closes them.
        model: one of ``agents.models``.
        fields: sent with every request: ``max_tokens``, ``agentwire={"labels": …}``, ….
    """

    OTEL_PROVIDER_NAME = "agentwire"

    def __init__(self, agents: LocalAgents, model: str, **fields: Any) -> None:
        super().__init__()
        self.agents = agents
        self.model = model
        self.fields = fields

    def _inner_get_response(
        self,
        *,
        messages: Sequence[Message],
        stream: bool,
        options: Mapping[str, Any],
        **kwargs: Any,
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        if stream:
            return self._build_response_stream(self._updates(messages, options))
        return self._response(messages, options)

    async def _response(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> ChatResponse:
        fields = self._request_fields(options)
        reply = await self.agents.aask(self.model, turns_of(messages, options), **fields)
        return ChatResponse(
            messages=Message("assistant", [reply.text]),
            usage_details=usage_of(reply),
            **self._reply_fields(reply),
        )

    async def _updates(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncIterator[ChatResponseUpdate]:
        fields, turns = self._request_fields(options), turns_of(messages, options)
        async for piece in self.agents.astream(self.model, turns, **fields):
            if isinstance(piece, str):
                content, reply_fields = Content.from_text(piece), {"model": self.model}
            else:
                content, reply_fields = (
                    Content.from_usage(usage_of(piece)),
                    self._reply_fields(piece),
                )
            yield ChatResponseUpdate(contents=[content], role="assistant", **reply_fields)

    def _reply_fields(self, reply: ChatReply) -> dict[str, Any]:
        return {
            "response_id": reply.request_id,
            "model": self.model,
            "finish_reason": reply.finish_reason,
            "additional_properties": {"agentwire": reply.details},
        }

    def _request_fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Raises InputError if an option is not supported."""
        given = {name: value for name, value in options.items() if value not in (None, [], {})}
        given.pop("tool_choice", None)  # has no meaning without tools
        unknown = given.keys() - OPTIONS - IGNORED
        if unknown:
            raise InputError(
                f"agentwire does not support the options {', '.join(sorted(unknown))}.",
                hint=f"Supported options: {', '.join(sorted(OPTIONS))}.",
            )
        return {**self.fields, **{name: given[name] for name in given.keys() & OPTIONS}}


def turns_of(messages: Sequence[Message], options: Mapping[str, Any]) -> list[Turn]:
    """The conversation, instructions first. Raises InputError if a message is not text."""
    turns: list[Turn] = []
    if options.get("instructions"):
        turns.append(("system", options["instructions"]))
    for message in messages:
        role = str(message.role)
        only_text = all(content.type == "text" for content in message.contents)
        parts = [message.text if only_text else None]
        turns.append(text_turn(role if role in ROLES else None, parts, role))
    return turns


def usage_of(reply: ChatReply) -> UsageDetails:
    usage = reply.usage
    return UsageDetails(
        input_token_count=usage["prompt_tokens"],
        output_token_count=usage["completion_tokens"],
        total_token_count=usage["total_tokens"],
    )
