"""A chat model for LangChain and LangGraph (extra ``agentwire[langchain]``).

::

    with LocalAgents("scenario.yaml") as agents:
        judge = ChatAgentwire(agents=agents, model="llama->mistral")
        judge.invoke("A moving, funny film.").content

Channel, reason, times, bytes and scores are in the message's ``response_metadata["agentwire"]``.
A handle is the message's text, so a graph can keep it in its state and its checkpoints. An expired
handle raises RequestError with the code EXPIRED.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from agentwire.adapters.local import LocalAgents, Turn, text_turn
from agentwire.chat.service import ChatReply

ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class ChatAgentwire(BaseChatModel):
    """One model of a scenario: an agent, a wire, or ``<wire>:keep``.

    Attributes:
        agents: started agents.
        model: one of ``agents.models``.
        labels: the answer is one of these words; an empty list asks for free text.
        prompt: the question to the receiver about the payload.
        fallback: what happens without soft tokens: relay as ``text``, or raise an ``error``.
    """

    agents: LocalAgents = Field(exclude=True, repr=False)
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    labels: list[str] | None = None
    prompt: str | None = None
    fallback: Literal["text", "error"] | None = None

    @property
    def _llm_type(self) -> str:
        return "agentwire"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        fields = self._fields(stop, kwargs)
        return self._result(self.agents.ask(self.model, turns_of(messages), **fields))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        fields = self._fields(stop, kwargs)
        return self._result(await self.agents.aask(self.model, turns_of(messages), **fields))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        fields = self._fields(stop, kwargs)
        for piece in self.agents.stream(self.model, turns_of(messages), **fields):
            chunk = self._chunk(piece)
            if run_manager is not None and isinstance(piece, str):
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        fields = self._fields(stop, kwargs)
        async for piece in self.agents.astream(self.model, turns_of(messages), **fields):
            chunk = self._chunk(piece)
            if run_manager is not None and isinstance(piece, str):
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    def _fields(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        wire = {"labels": self.labels, "prompt": self.prompt, "fallback": self.fallback}
        fields = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": stop,
            **given,
        }
        fields.pop("ls_structured_output_format", None)  # internal to the framework
        wire |= fields.pop("agentwire", None) or {}
        return {**fields, "agentwire": {k: v for k, v in wire.items() if v is not None}}

    def _result(self, reply: ChatReply) -> ChatResult:
        message = AIMessage(content=reply.text, **self._message_fields(reply))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, piece: str | ChatReply) -> ChatGenerationChunk:
        if isinstance(piece, str):
            return ChatGenerationChunk(message=AIMessageChunk(content=piece))
        message = AIMessageChunk(content="", **self._message_fields(piece))
        return ChatGenerationChunk(message=message)

    def _message_fields(self, reply: ChatReply) -> dict[str, Any]:
        return {
            "response_metadata": {
                "model_name": self.model,
                "finish_reason": reply.finish_reason,
                "agentwire": reply.details,
            },
            "usage_metadata": UsageMetadata(
                input_tokens=reply.usage["prompt_tokens"],
                output_tokens=reply.usage["completion_tokens"],
                total_tokens=reply.usage["total_tokens"],
            ),
        }


def turns_of(messages: Sequence[BaseMessage]) -> list[Turn]:
    """Raises InputError if a message is not text, or is of an unknown kind."""
    turns: list[Turn] = []
    for message in messages:
        role = ROLES.get(message.type.removesuffix("Chunk").removeprefix("AIMessage") or "ai")
        parts = [message.content] if isinstance(message.content, str) else message.content
        texts = [part if isinstance(part, str) else part.get("text") for part in parts]
        turns.append(text_turn(role, texts, message.type))
    return turns
