"""For AutoGen teams: a message that stands for soft tokens, and an agent that produces it.

A team must be created with ``custom_message_types=[LatentMessage]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from autogen_agentchat.agents import BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import BaseChatMessage
from autogen_core import CancellationToken
from autogen_core.models import UserMessage

from agentwire.adapters.local import LocalAgents


class LatentMessage(BaseChatMessage):
    """Stands for a payload that one agent of a team passes to the next."""

    type: Literal["LatentMessage"] = "LatentMessage"
    handle: str  # the text that the next agent's model receives
    wire: str  # the wire that made the payload
    payload_bytes: int

    def to_text(self) -> str:
        return f"[{self.payload_bytes} bytes of soft tokens on {self.wire}]"

    def to_model_text(self) -> str:
        return self.handle

    def to_model_message(self) -> UserMessage:
        return UserMessage(content=self.handle, source=self.source)


class LatentReader(BaseChatAgent):
    """Reads the last message and passes it on as soft tokens over a wire such as ``a->b``."""

    def __init__(self, name: str, agents: LocalAgents, wire: str) -> None:
        super().__init__(
            name, description=f"Reads the last message and passes soft tokens over {wire}."
        )
        self._agents = agents
        self._wire = wire

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        return (LatentMessage,)

    async def on_messages(
        self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken
    ) -> Response:
        turn = ("user", messages[-1].to_model_text())
        reply = await self._agents.aask(f"{self._wire}:keep", [turn])
        message = LatentMessage(
            source=self.name,
            handle=reply.text,
            wire=self._wire,
            payload_bytes=reply.details["payload_bytes"],
        )
        return Response(chat_message=message)

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        """Does nothing: the agent has no state."""
