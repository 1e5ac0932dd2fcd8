"""AgentwireClient, LatentMessage and LatentReader in AutoGen teams."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("autogen_agentchat", reason="needs agentwire[autogen]; `make test-frameworks`")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken
from autogen_core.models import SystemMessage, UserMessage
from pair import BAD, GOOD

from agentwire.adapters.autogen import AgentwireClient
from agentwire.adapters.autogen_team import LatentMessage, LatentReader
from agentwire.adapters.local import LocalAgents
from agentwire.errors import InputError

pytestmark = pytest.mark.real


async def test_assistant_asks_over_a_wire(agents: LocalAgents) -> None:
    client = AgentwireClient(agents, "llama->mistral")
    for text, expected in ((GOOD, "positive"), (BAD, "negative")):
        assistant = AssistantAgent("judge", model_client=client)
        result = await assistant.run(task=text)
        assert result.messages[-1].content == expected
        assert result.messages[-1].models_usage.completion_tokens == 1
    assert client.total_usage().completion_tokens == 2
    assert client.actual_usage().prompt_tokens > 8


async def test_a_team_passes_soft_tokens(agents: LocalAgents) -> None:
    judge = AssistantAgent("judge", model_client=AgentwireClient(agents, "mistral"))
    for text, expected in ((GOOD, "positive"), (BAD, "negative")):
        team = RoundRobinGroupChat(
            [LatentReader("reader", agents, "llama->mistral"), judge],
            termination_condition=MaxMessageTermination(3),
            custom_message_types=[LatentMessage],
        )
        result = await team.run(task=text)
        latent, answer = result.messages[1:]
        assert isinstance(latent, LatentMessage) and latent.payload_bytes == 8 * 640 * 2
        assert "10240 bytes of soft tokens" in latent.to_text()
        assert LatentMessage.load(latent.dump()) == latent
        assert answer.content == expected
        await judge.on_reset(CancellationToken())


async def test_streams_and_refuses_json_output(agents: LocalAgents) -> None:
    client = AgentwireClient(agents, "llama", max_tokens=8)
    messages = [SystemMessage(content="Be brief."), UserMessage(content="Hello?", source="user")]
    *pieces, result = [piece async for piece in client.create_stream(messages)]
    assert "".join(pieces) == result.content != ""
    assert result.finish_reason in ("stop", "length")
    assert 0 < client.count_tokens(messages) < client.remaining_tokens(messages)
    with pytest.raises(InputError, match="tools or JSON"):
        await client.create(messages, json_output=True)


async def test_cancelled_call_ends(fake_agents: LocalAgents) -> None:
    client = AgentwireClient(fake_agents, "writer")
    token = CancellationToken()
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.create([UserMessage(content="x", source="u")], cancellation_token=token)
