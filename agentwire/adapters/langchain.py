"""LangChain and LangGraph: a chat model whose messages cross a wire (``agentwire[langchain]``).

::

    with LocalAgents("scenario.yaml") as agents:
        judge = ChatAgentwire(agents=agents, model="llama->mistral")
        judge.invoke("A moving, funny film.").content

The facts of an answer (channel, reason, times, bytes, scores) stand in the message's
``response_metadata["agentwire"]``. A handle is the message's text, so it survives in a graph's
state and in its checkpoints, and weighs nothing; used too late it raises RequestError with EXPIRED.
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

from agentwire.adapters.local import LocalAgents, Turn
from agentwire.chat.answers import Answer
from agentwire.errors import InputError

ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class ChatAgentwire(BaseChatModel):
    """One model of a scenario: an agent, a wire, or ``<wire>:keep``.

    Attributes:
        agents: started.
        model: one of ``agents.models``.
        labels: the answer is one of these words; empty: free text, whatever the scenario's task.
        prompt: what the receiver is asked about the payload.
        fallback: where soft tokens cannot be had: relay as ``text``, or raise an ``error``.
    """

    agents: Any = Field(exclude=True, repr=False)
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
        answer = self._agents.ask(self.model, turns_of(messages), **self._fields(stop, kwargs))
        return self._result(answer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        fields = self._fields(stop, kwargs)
        return self._result(await self._agents.aask(self.model, turns_of(messages), **fields))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        fields = self._fields(stop, kwargs)
        for piece in self._agents.stream(self.model, turns_of(messages), **fields):
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
        async for piece in self._agents.astream(self.model, turns_of(messages), **fields):
            chunk = self._chunk(piece)
            if run_manager is not None and isinstance(piece, str):
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    @property
    def _agents(self) -> LocalAgents:
        agents: LocalAgents = self.agents
        return agents

    def _fields(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        wire = {"labels": self.labels, "prompt": self.prompt, "fallback": self.fallback}
        fields = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": stop,
            **given,
        }
        fields.pop("ls_structured_output_format", None)  # a note of the framework to itself
        said = {**wire, **(fields.pop("agentwire", None) or {})}
        return {**fields, "agentwire": {k: v for k, v in said.items() if v is not None}}

    def _result(self, answer: Answer) -> ChatResult:
        message = AIMessage(
            content=answer.text,
            response_metadata=self._metadata(answer),
            usage_metadata=usage_of(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, piece: str | Answer) -> ChatGenerationChunk:
        if isinstance(piece, str):
            return ChatGenerationChunk(message=AIMessageChunk(content=piece))
        message = AIMessageChunk(
            content="",
            response_metadata=self._metadata(piece),
            usage_metadata=usage_of(piece),
        )
        return ChatGenerationChunk(message=message)

    def _metadata(self, answer: Answer) -> dict[str, Any]:
        return {
            "model_name": self.model,
            "finish_reason": answer.finish,
            "agentwire": answer.facts,
        }


def turns_of(messages: Sequence[BaseMessage]) -> list[Turn]:
    """The conversation as agents read it.

    Raises:
        InputError: a message that is not text, or of an unknown kind.
    """
    turns: list[Turn] = []
    for message in messages:
        role = ROLES.get(message.type.removesuffix("Chunk").removeprefix("AIMessage") or "ai")
        parts = [message.content] if isinstance(message.content, str) else message.content
        texts = [part if isinstance(part, str) else part.get("text") for part in parts]
        if role is None or None in texts:
            raise InputError(
                f"agents read text alone, not a {message.type} message like this.",
                hint="Leave images and other parts out.",
            )
        turns.append((role, "\n".join(text for text in texts if text)))
    return turns


def usage_of(answer: Answer) -> UsageMetadata:
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
    )
