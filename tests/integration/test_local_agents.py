"""``LocalAgents``, which all adapters use, with fake models in real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_run import TASK, my_children
from gateway_run import deployment

from agentwire.adapters.local import LocalAgents
from agentwire.chat.service import ChatReply
from agentwire.errors import AgentwireError, InputError, NackCode, RequestError
from agentwire.model.fake import answer

pytestmark = pytest.mark.integration
FILM = "a warm and moving film"


@pytest.fixture(scope="module")
def agents() -> Iterator[LocalAgents]:
    with LocalAgents(deployment()) as started:
        yield started
    assert not my_children()


def test_calls_from_synchronous_code_and_from_many_threads(agents: LocalAgents) -> None:
    assert agents.models[:3] == ["llama", "mistral", "writer"]
    one = agents.ask("llama->mistral", [("user", FILM)])
    assert one.text == answer(FILM, TASK.labels) and one.details["channel"] == "soft"
    texts = [f"film {n}" for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda text: agents.ask("llama->mistral", [("user", text)]).text, texts)
        assert list(found) == [answer(text, TASK.labels) for text in texts]


async def test_calls_from_any_event_loop(agents: LocalAgents) -> None:
    handle = await agents.aask("llama->mistral:keep", [("user", FILM)])
    answers = await asyncio.gather(
        *(agents.aask("mistral", [("user", handle.text)]) for _ in range(8))
    )
    assert {a.text for a in answers} == {answer(FILM, TASK.labels)}
    events = [e async for e in agents.astream("writer", [("user", "one two")])]
    assert "".join(e for e in events if isinstance(e, str)) == "writer-model: one two"
    assert isinstance(events[-1], ChatReply) and events[-1].usage["completion_tokens"] == 3
    assert [type(e) for e in agents.stream("writer", [("user", "one two")])][-1] is ChatReply


def test_an_answer_that_a_stop_string_ends_was_not_cut(agents: LocalAgents) -> None:
    turns = [("user", "one two three")]
    for limit, reason in ((3, "length"), (4, "stop")):
        reply = agents.ask("writer", turns, max_tokens=limit, stop="three")
        assert reply.finish_reason == reason
        *_, last = agents.stream("writer", turns, max_tokens=limit, stop="three")
        assert isinstance(last, ChatReply) and last.finish_reason == reason


def test_errors_are_those_of_the_python_api(agents: LocalAgents) -> None:
    turns = [("user", "x")]
    for model, fields, words in (
        ("nobody", {}, "does not exist"),
        ("writer", {"temperature": 9}, "temperature"),
        ("writer", {"top_k": 9}, "top_k"),
        ("writer", {"agentwire": {"lables": []}}, "lables"),
        ("llama->mistral", {"agentwire": {"bridge": "another"}}, "uses bridge"),
    ):
        with pytest.raises(InputError, match=words):
            agents.ask(model, turns, **fields)
    with pytest.raises(RequestError) as error:
        agents.ask("mistral", [("user", "<|agentwire:" + "A" * 32 + "|>")])
    assert error.value.code is NackCode.EXPIRED
    with pytest.raises(RequestError) as error:
        agents.ask("writer", turns, agentwire={"timeout": 1e-6})
    assert error.value.code in (NackCode.DEADLINE, NackCode.OVERLOADED)


def test_agents_that_are_not_running_refuse_calls() -> None:
    agents = LocalAgents(deployment())
    agents.close()  # never started
    started = LocalAgents(deployment())
    started.start()
    started.close()
    started.close()
    for closed in (agents, started):
        with pytest.raises(AgentwireError):
            closed.ask("writer", [("user", "x")])
