"""Questions about documents through the gateway, with fake models whose bridge answers any."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from gateway_run import ADA, BOB, gateway, reader_deployment
from patience import EVENT_S

from agentwire.model.fake import READER_SIZES, text_hash

httpx = pytest.importorskip("httpx2", reason="`make test` installs httpx2")
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TEXT = "one two three"
MODEL = "llama->mistral"
ENCODE_MS = 300


def document(text: str = TEXT, question: str = "Who?", *history: tuple[str, str]) -> Any:
    turns = [("system", text), *history, ("user", question)]
    return [{"role": role, "content": content} for role, content in turns]


def answer(text: str = TEXT, question: str = "Who?") -> str:
    return f"mistral-model: soft {text_hash(text):08x} {question}"


class Client:
    def __init__(self, url: str, key: str = ADA) -> None:
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=EVENT_S)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()

    async def ask(self, messages: Any, model: str = MODEL, status: int = 200, **fields: Any) -> Any:
        body = {"model": model, "messages": messages, **fields}
        response = await self.http.post("/chat/completions", json=body)
        assert response.status_code == status, response.text
        return response.json()


def text_of(body: Any) -> str:
    found: str = body["choices"][0]["message"]["content"]
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    slow = {"encode_ms": ENCODE_MS}
    async with gateway(reader_deployment(task=False, llama=slow)) as base:
        yield base


async def test_a_document_is_read_once_and_asked_many_times(url: str) -> None:
    async with Client(url) as client:
        first = await client.ask(document())
        assert text_of(first) == answer()
        facts = first["agentwire"]
        assert (facts["channel"], facts["document"], facts["reason"]) == ("soft", "read", "")
        assert facts["latency_ms"] > ENCODE_MS and "unread" not in facts
        assert -1 < facts["confidence"] <= 0
        usage = first["usage"]
        assert usage["soft_tokens"] == READER_SIZES[0]
        assert usage["prompt_tokens"] > usage["soft_tokens"]
        history = [("user", "Who?"), ("assistant", text_of(first))]
        second = await client.ask(document(TEXT, "When?", *history))
        assert text_of(second) == answer(question="When?")
        facts = second["agentwire"]
        assert (facts["document"], facts["unread"]) == ("kept", ["history"])
        assert facts["latency_ms"] < ENCODE_MS and "encode" not in facts["stages_ms"]
        # The first of two user messages is the same document.
        users = [{"role": "user", "content": text} for text in (TEXT, "Where?")]
        third = await client.ask(users)
        assert text_of(third) == answer(question="Where?")
        assert third["agentwire"]["document"] == "kept"
        prompt = {"prompt": "Why?"}
        fourth = await client.ask([{"role": "user", "content": TEXT}], agentwire=prompt)
        assert text_of(fourth) == answer(question="Why?")
        assert fourth["agentwire"]["document"] == "kept"


async def test_documents_belong_to_their_owner(url: str) -> None:
    async with Client(url) as ada, Client(url, BOB) as bob:
        for client in (ada, bob):
            assert (await client.ask(document("owned")))["agentwire"]["document"] == "read"


async def test_questions_at_the_same_time_wait_for_one_reading(url: str) -> None:
    async with Client(url) as client:
        asked = [client.ask(document("at once", f"q{i}")) for i in range(4)]
        replies = await asyncio.gather(*asked)
        assert [text_of(reply) for reply in replies] == [
            answer("at once", f"q{i}") for i in range(4)
        ]
        assert max(reply["agentwire"]["latency_ms"] for reply in replies) < 2 * ENCODE_MS


async def test_an_answer_about_a_document_is_streamed(url: str) -> None:
    async with Client(url) as client:
        body = {"model": MODEL, "messages": document("streamed"), "stream": True}
        for state in ("read", "kept"):
            async with client.http.stream("POST", "/chat/completions", json=body) as response:
                lines = [line async for line in response.aiter_lines() if line]
            assert len(lines) > 4 and lines[-1] == "data: [DONE]"
            assert f'"document": "{state}"' in lines[-2]


async def test_a_handle_is_a_document(url: str) -> None:
    async with Client(url) as client:
        kept = await client.ask([{"role": "user", "content": "kept"}], f"{MODEL}:keep")
        handle = text_of(kept)
        assert kept["usage"]["soft_tokens"] == READER_SIZES[0]
        reply = await client.ask([{"role": "user", "content": f"{handle} Who?"}])
        assert text_of(reply) == answer("kept")


async def test_a_text_channel_and_a_missing_question(url: str) -> None:
    async with Client(url) as client:
        reply = await client.ask(document(), agentwire={"channel": "text"})
        assert text_of(reply) == f"mistral-model: {TEXT} Who?"
        assert "document" not in reply["agentwire"]
        error = await client.ask([{"role": "user", "content": TEXT}], status=400)
        assert "a document and a question" in error["error"]["message"]


async def test_a_sender_that_was_started_again_reads_the_document_again() -> None:
    async with gateway(reader_deployment(task=False)) as base, Client(base) as client:
        await client.ask(document())
        for child in psutil.Process(os.getpid()).children():
            child.send_signal(signal.SIGKILL)
        reply = await client.ask(document())
        assert text_of(reply) == answer()
