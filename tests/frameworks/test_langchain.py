"""ChatAgentwire under LangChain and LangGraph."""

from __future__ import annotations

import time
from typing import Annotated, TypedDict

import pytest

pytest.importorskip("langchain_core", reason="needs agentwire[langchain]; `make test-frameworks`")

from langchain_core.messages import HumanMessage, SystemMessage
from pair import BAD, GOOD

from agentwire.adapters.langchain import ChatAgentwire, turns_of
from agentwire.adapters.local import LocalAgents
from agentwire.errors import InputError, NackCode, RequestError

pytestmark = pytest.mark.real


def test_wire_is_a_chat_model(agents: LocalAgents) -> None:
    judge = ChatAgentwire(agents=agents, model="llama->mistral")
    answers = judge.batch([GOOD, BAD])
    assert [answer.content for answer in answers] == ["positive", "negative"]
    for answer in answers:
        facts = answer.response_metadata["agentwire"]
        assert (facts["channel"], facts["reason"]) == ("soft", "")
        assert facts["payload_bytes"] == 8 * 640 * 2
        assert answer.usage_metadata["output_tokens"] == 1
        assert answer.usage_metadata["input_tokens"] > 8


async def test_async_calls_and_streams(agents: LocalAgents) -> None:
    writer = ChatAgentwire(agents=agents, model="llama", max_tokens=12)
    messages = [SystemMessage("Be brief."), HumanMessage("Say hello.")]
    whole = await writer.ainvoke(messages)
    chunks = [chunk async for chunk in writer.astream(messages)]
    assert len(chunks) > 2
    assert "".join(chunk.text for chunk in chunks) == whole.content != ""
    assert "".join(chunk.text for chunk in writer.stream(messages)) == whole.content
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert total.usage_metadata == whole.usage_metadata
    assert total.response_metadata["agentwire"]["channel"] == "text"


def test_caller_can_choose_labels(agents: LocalAgents) -> None:
    critic = ChatAgentwire(
        agents=agents, model="llama->mistral", prompt="Long or short?", labels=["long", "short"]
    )
    answer = critic.invoke(GOOD)
    assert answer.content in ("long", "short")
    # The bridge was trained for another question, so the text is relayed.
    assert answer.response_metadata["agentwire"]["reason"] == NackCode.PROMPT_MISMATCH
    with pytest.raises(RequestError) as error:
        ChatAgentwire(
            agents=agents, model="llama->mistral", prompt="Go on:", labels=[], fallback="error"
        ).invoke(GOOD)
    assert error.value.code is NackCode.UNSUPPORTED


def test_messages_with_images_are_refused(agents: LocalAgents) -> None:
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])
    with pytest.raises(InputError, match="only text"):
        turns_of([picture])
    parts = HumanMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    assert turns_of([parts]) == [("user", "a\nb")]


class State(TypedDict):
    review: str
    messages: Annotated[list, "replaced"]


def graph(agents: LocalAgents, saver: object) -> object:
    langgraph = pytest.importorskip("langgraph.graph", reason="`make test-frameworks`")
    reader = ChatAgentwire(agents=agents, model="llama->mistral:keep")
    judge = ChatAgentwire(agents=agents, model="mistral", labels=["negative", "positive"])
    built = langgraph.StateGraph(State)
    built.add_node("reader", lambda state: {"messages": [reader.invoke(state["review"])]})
    built.add_node("judge", lambda state: {"messages": [judge.invoke(state["messages"])]})
    built.add_edge("__start__", "reader")
    built.add_edge("reader", "judge")
    return built.compile(checkpointer=saver, interrupt_before=["judge"])


def test_checkpoint_keeps_its_handle(agents: LocalAgents) -> None:
    saver = pytest.importorskip(
        "langgraph.checkpoint.memory", reason="`make test-frameworks`"
    ).InMemorySaver()
    threads = {text: {"configurable": {"thread_id": text}} for text in (GOOD, BAD)}
    for text, config in threads.items():
        state = graph(agents, saver).invoke({"review": text, "messages": []}, config)
        handle = state["messages"][-1].content
        assert handle.startswith("<|agentwire:") and text not in str(state["messages"])
    # Another graph, restored only from the checkpoint.
    answers = [
        graph(agents, saver).invoke(None, config)["messages"][-1] for config in threads.values()
    ]
    assert [answer.content for answer in answers] == ["positive", "negative"]
    assert {a.response_metadata["agentwire"]["channel"] for a in answers} == {"soft"}


def test_checkpoint_with_an_expired_handle_raises(fake_agents: LocalAgents) -> None:
    saver = pytest.importorskip(
        "langgraph.checkpoint.memory", reason="`make test-frameworks`"
    ).InMemorySaver()
    config = {"configurable": {"thread_id": "1"}}
    graph(fake_agents, saver).invoke({"review": GOOD, "messages": []}, config)
    time.sleep(1.1)
    with pytest.raises(RequestError, match="expired") as error:
        graph(fake_agents, saver).invoke(None, config)
    assert error.value.code is NackCode.EXPIRED


def test_checkpoint_restored_with_other_agents_raises() -> None:
    """The payload is gone with the first program's sender."""
    saver = pytest.importorskip("langgraph.checkpoint.memory").InMemorySaver()
    from gateway_run import deployment

    config = {"configurable": {"thread_id": "1"}}
    with LocalAgents(deployment()) as first:
        graph(first, saver).invoke({"review": GOOD, "messages": []}, config)
    with LocalAgents(deployment()) as second:
        with pytest.raises(RequestError, match="expired") as error:
            graph(second, saver).invoke(None, config)
        assert error.value.code is NackCode.EXPIRED
