"""Microsoft agent-framework: a chat client whose messages cross a wire.

Extra ``agentwire[agent-framework]``. ::

    with LocalAgents("scenario.yaml") as agents:
        judge = Agent(AgentwireChatClient(agents, "llama->mistral"))
        print(await judge.run("A moving, funny film."))

What travels on the edges of a workflow is text: a payload travels as its handle, so checkpoints
hold no arrays. The facts of an answer stand in ``additional_properties["agentwire"]``.
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

from agentwire.adapters.local import LocalAgents, Turn
from agentwire.chat.answers import Answer
from agentwire.errors import InputError

OPTIONS = {"max_tokens", "temperature", "top_p", "seed", "stop", "agentwire"}
ROLES = {"system", "developer", "user", "assistant", "tool"}
MEANINGLESS = {"model", "user", "metadata", "store", "conversation_id", "instructions"}
"""Options of the framework that change nothing here."""


class AgentwireChatClient(BaseChatClient):
    """One model of a scenario.

    Args:
        agents: started; not closed with the client, since several share them.
        model: one of ``agents.models``.
        fields: of every request: ``max_tokens``, ``agentwire={"labels": …}``, ….
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
        return self._answer(messages, options)

    async def _answer(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> ChatResponse:
        fields = self._asked(options)
        answer = await self.agents.aask(self.model, turns_of(messages, options), **fields)
        return ChatResponse(
            messages=Message("assistant", [answer.text]),
            response_id=answer.request_id,
            model=self.model,
            finish_reason=answer.finish,
            usage_details=usage_of(answer),
            additional_properties={"agentwire": answer.facts},
        )

    async def _updates(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncIterator[ChatResponseUpdate]:
        fields, turns = self._asked(options), turns_of(messages, options)
        async for piece in self.agents.astream(self.model, turns, **fields):
            if isinstance(piece, str):
                yield ChatResponseUpdate(
                    contents=[Content.from_text(piece)], role="assistant", model=self.model
                )
            else:
                yield ChatResponseUpdate(
                    contents=[Content.from_usage(usage_of(piece))],
                    role="assistant",
                    response_id=piece.request_id,
                    model=self.model,
                    finish_reason=piece.finish,
                    additional_properties={"agentwire": piece.facts},
                )

    def _asked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            InputError: an option that would have to be ignored.
        """
        given = {name: value for name, value in options.items() if value not in (None, [], {})}
        given.pop("tool_choice", None)  # says nothing where there are no tools
        unknown = given.keys() - OPTIONS - MEANINGLESS
        if unknown:
            raise InputError(
                f"agents of agentwire do not take {', '.join(sorted(unknown))}.",
                hint=f"They take {', '.join(sorted(OPTIONS))}.",
            )
        return {**self.fields, **{name: given[name] for name in given.keys() & OPTIONS}}


def turns_of(messages: Sequence[Message], options: Mapping[str, Any]) -> list[Turn]:
    """The conversation as agents read it, instructions first.

    Raises:
        InputError: a message that is not text.
    """
    turns: list[Turn] = []
    if options.get("instructions"):
        turns.append(("system", options["instructions"]))
    for message in messages:
        role = str(message.role)
        if role not in ROLES or any(content.type != "text" for content in message.contents):
            raise InputError(
                f"agents read text alone, not a {role} message like this.",
                hint="Leave images and function calls out.",
            )
        turns.append((role, message.text))
    return turns


def usage_of(answer: Answer) -> UsageDetails:
    usage = answer.usage
    return UsageDetails(
        input_token_count=usage["prompt_tokens"],
        output_token_count=usage["completion_tokens"],
        total_token_count=usage["total_tokens"],
    )
