"""AgentwireChatClient under Microsoft's agent-framework."""

from __future__ import annotations

import pytest

pytest.importorskip(
    "agent_framework", reason="needs agentwire[agent-framework]; `make test-frameworks`"
)

from agent_framework import Agent, Message
from pair import BAD, GOOD

from agentwire.adapters.agent_framework import AgentwireChatClient
from agentwire.adapters.local import LocalAgents
from agentwire.errors import InputError

pytestmark = pytest.mark.real


async def test_agent_asks_over_a_wire(agents: LocalAgents) -> None:
    judge = Agent(AgentwireChatClient(agents, "llama->mistral"), "You judge films.")
    for text, expected in ((GOOD, "positive"), (BAD, "negative")):
        response = await judge.run(text)
        assert response.text == expected
        assert response.usage_details["output_token_count"] == 1


async def test_one_agent_passes_a_payload_to_another(agents: LocalAgents) -> None:
    reader = Agent(AgentwireChatClient(agents, "llama->mistral:keep"), name="reader")
    judge = Agent(AgentwireChatClient(agents, "mistral"), name="judge")
    for text, expected in ((GOOD, "positive"), (BAD, "negative")):
        handle = (await reader.run(text)).text
        assert handle.startswith("<|agentwire:")
        assert (await judge.run(handle)).text == expected


async def test_streams_and_reports_the_channel(agents: LocalAgents) -> None:
    client = AgentwireChatClient(agents, "llama", max_tokens=8)
    stream = client.get_response([Message("user", ["Say hello."])], stream=True)
    texts = [update.text async for update in stream]
    whole = await stream.get_final_response()
    assert len([text for text in texts if text]) > 1 and "".join(texts) == whole.text
    answer = await client.get_response([Message("user", ["Say hello."])])
    assert answer.text == whole.text
    assert answer.additional_properties["agentwire"]["channel"] == "text"
    with pytest.raises(InputError, match="does not support"):
        await client.get_response([Message("user", ["x"])], options={"frequency_penalty": 1.0})
