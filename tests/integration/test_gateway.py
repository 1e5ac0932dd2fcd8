"""The gateway with real agent processes, called by a plain HTTP client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from fake_run import TASK
from gateway_run import ADA, BOB, deployment, gateway, joint_deployment
from patience import EVENT_S

from agentwire.gateway.limits import GatewayLimits
from agentwire.model.fake import answer, joint_answer, text_hash

httpx = pytest.importorskip("httpx2", reason="`make test` installs httpx2")
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

FILM = "a warm and moving film"
LONG = " ".join(["word"] * 1000)  # at 100 ms each, longer than EVENT_S


class Client:
    """A user of the API."""

    def __init__(self, url: str, key: str | None = ADA) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=EVENT_S)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()

    async def chat(self, model: str, *contents: str, **fields: Any) -> Any:
        messages = [{"role": "user", "content": content} for content in contents]
        body = {"model": model, "messages": messages, **fields}
        return await self.http.post("/chat/completions", json=body)

    async def text(self, model: str, content: str, **fields: Any) -> str:
        response = await self.chat(model, content, **fields)
        assert response.status_code == 200, response.text
        found: str = response.json()["choices"][0]["message"]["content"]
        return found

    async def events(self, path: str, **body: Any) -> AsyncIterator[Any]:
        async with self.http.stream("POST", path, json={"stream": True, **body}) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                if line:
                    data = line.removeprefix("data: ")
                    yield data if data == "[DONE]" else json.loads(data)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    """The gateway of all tests that need no special agents or limits."""
    async with gateway() as base:
        yield base


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def joint_url() -> AsyncIterator[str]:
    async with gateway(joint_deployment()) as base:
        yield base


async def test_agents_wires_and_handles_are_models(url: str) -> None:
    async with Client(url) as client:
        listed = (await client.http.get("/models")).json()["data"]
        names = [model["id"] for model in listed]
        assert names == ["llama", "mistral", "writer", "llama->mistral", "llama->mistral:keep"]
        one = await client.http.get("/models/llama->mistral")
        assert one.json() == listed[3]
        assert (await client.http.get("/models/nobody")).status_code == 404
        assert await client.text("writer", "hello there") == "writer-model: hello there"

        response = await client.chat("llama->mistral", FILM)
        body = response.json()
        assert body["choices"][0]["message"]["content"] == answer(FILM, TASK.labels)
        assert body["choices"][0]["finish_reason"] == "stop"
        facts = body["agentwire"]
        assert (facts["channel"], facts["reason"], facts["payload_bytes"]) == ("soft", "", 256)
        assert sum(facts["stages_ms"].values()) == pytest.approx(facts["latency_ms"], abs=0.1)
        assert set(facts["scores"]) == set(TASK.labels)
        assert response.headers["x-agentwire-channel"] == "soft"
        usage = body["usage"]
        assert usage["soft_tokens"] == 8 and usage["prompt_tokens"] == 8 + 1
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_each_sender_of_a_joint_wire_reads_its_part(joint_url: str) -> None:
    def parts(*texts: str) -> Any:
        content = [{"type": "text", "text": text} for text in texts]
        return [{"role": "user", "content": content}]

    def right(*texts: str) -> str:
        return joint_answer(texts, TASK.labels)

    pairs = [(f"plot {n}", f"acting {n}") for n in range(6)]
    assert [right(*pair) for pair in pairs] != [right(*pair[::-1]) for pair in pairs]
    async with Client(joint_url) as client:
        models = (await client.http.get("/models")).json()["data"]
        names = ["a", "b", "c", "a+b->c", "a->c:keep", "b->c:keep"]
        assert [card["id"] for card in models] == names
        for pair in pairs:
            body = (await client.chat("a+b->c", messages=parts(*pair))).json()
            assert body["choices"][0]["message"]["content"] == right(*pair)
        assert body["usage"]["soft_tokens"] == 2 * 8
        facts = body["agentwire"]
        assert (facts["channel"], facts["wire"]) == ("soft", "a+b->c")
        # One text is divided between the senders, because the wire says `reads: share`.
        assert await client.text("a+b->c", "a warm moving film") == right("a warm", "moving film")
        events = [e async for e in client.events("/chat/completions", model="a+b->c",
                                                 messages=parts(*pairs[0]))]  # fmt: skip
        assert events[0]["choices"][0]["delta"]["content"] == right(*pairs[0])
        assert events[-1] == "[DONE]"

        for fields, param in (
            ({"messages": parts("one", "two", "three")}, "messages"),
            ({"messages": parts("x", "y"), "agentwire": {"keep": True}}, "agentwire.keep"),
            ({"messages": parts("x", "y"), "agentwire": {"channel": "text"}}, "agentwire.channel"),
        ):
            refused = await client.chat("a+b->c", **fields)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == param
        assert (await client.chat("a->c", "alone")).status_code == 404


async def test_joint_wire_reads_one_handle_of_each_sender(joint_url: str) -> None:
    def right(*texts: str) -> str:
        return joint_answer(texts, TASK.labels)

    pairs = [(f"plot {n}", f"acting {n}") for n in range(6)]
    async with Client(joint_url) as client, Client(joint_url, BOB) as other:
        for plot, acting in pairs:
            first = await client.text("a->c:keep", plot)
            second = await client.text("b->c:keep", acting)
            for content in (f"{first} {second}", f"Judge {second}, then {first}."):
                assert await client.text("a+b->c", content) == right(plot, acting)
        again = await client.text("a->c:keep", "another plot")
        for model, content, status, code in (
            ("a+b->c", first, 400, "invalid_value"),
            ("a+b->c", f"{first} {second} {again}", 400, "invalid_value"),
            ("c", first, 403, "handle_forbidden"),
            ("c", f"{first} {second}", 400, "several_handles"),
            ("a+b->c", f"{first} <|agentwire:{'x' * 32}|>", 404, "handle_not_found"),
        ):
            refused = await client.chat(model, content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
        foreign = await other.chat("a+b->c", f"{first} {second}")
        assert foreign.status_code == 403


async def test_payload_is_passed_on_as_a_handle(url: str) -> None:
    async with Client(url) as ada, Client(url, BOB) as bob:
        handle = await ada.text("llama->mistral:keep", FILM)
        assert handle.startswith("<|agentwire:") and len(handle) == 46
        other = await ada.text("llama->mistral", FILM, agentwire={"keep": True})
        assert other.startswith("<|agentwire:") and other != handle
        direct = await ada.chat("writer", FILM, agentwire={"keep": True})
        assert direct.status_code == 400 and direct.json()["error"]["param"] == "agentwire.keep"
        for model in ("mistral", "llama->mistral"):
            response = await ada.chat(model, f"Here it is: {handle}")
            assert response.json()["choices"][0]["message"]["content"] == answer(FILM, TASK.labels)
            assert response.json()["agentwire"]["channel"] == "soft"
            assert response.json()["agentwire"]["unread"] == ["text"]
        for client, model, text, status, code in [
            (bob, "mistral", handle, 403, "handle_forbidden"),
            (ada, "writer", handle, 403, "handle_forbidden"),
            (ada, "llama", handle, 403, "handle_forbidden"),
            (ada, "llama->mistral:keep", handle, 403, "handle_forbidden"),
            (ada, "mistral", "<|agentwire:" + "A" * 32 + "|>", 404, "handle_not_found"),
        ]:
            refused = await client.chat(model, text)
            assert refused.status_code == status, refused.text
            assert refused.json()["error"]["code"] == code
            assert FILM not in refused.text and set(refused.json()) == {"error"}


async def test_handle_expires_or_is_lost_with_its_sender() -> None:
    async with gateway(limits=GatewayLimits(handle_ttl_s=0.5)) as url, Client(url) as client:
        handle = await client.text("llama->mistral:keep", FILM)
        await asyncio.sleep(0.6)
        assert (await client.chat("mistral", handle)).status_code == 404
    crash = deployment(llama={"crash_on": "poison"})
    async with gateway(crash) as url, Client(url) as client:
        handle = await client.text("llama->mistral:keep", FILM)
        doomed = await client.chat("llama->mistral", "poison")
        assert doomed.status_code == 500 and doomed.json()["error"]["code"] == "dead_letter"
        for _ in range(2):
            gone = await client.chat("mistral", handle)
            assert gone.status_code == 404, gone.text
        assert await client.text("llama->mistral", FILM) == answer(FILM, TASK.labels)


async def test_free_text_over_a_wire_reports_its_channel(url: str) -> None:
    free = {"agentwire": {"labels": [], "prompt": "Go on:"}}
    async with Client(url) as client:
        body = (await client.chat("llama->mistral", FILM, **free)).json()
        assert body["choices"][0]["message"]["content"] == f"mistral-model: {FILM}"
        facts = body["agentwire"]
        assert (facts["channel"], facts["reason"]) == ("text", "unsupported")
        free["agentwire"]["fallback"] = "error"
        refused = await client.chat("llama->mistral", FILM, **free)
        assert refused.status_code == 400
        assert "trained for answers in label words" in refused.json()["error"]["message"]
    async with gateway(deployment(bridge="any:free_text")) as url, Client(url) as client:
        body = (await client.chat("llama->mistral", FILM, **free)).json()
        assert (
            body["choices"][0]["message"]["content"] == f"mistral-model: soft {text_hash(FILM):08x}"
        )
        assert body["agentwire"]["channel"] == "soft"


async def test_streams_in_openais_shape(url: str) -> None:
    async with Client(url) as client:
        body = {"model": "writer", "messages": [{"role": "user", "content": "one two three"}]}
        *chunks, last, usage, done = [
            event
            async for event in client.events(
                "/chat/completions", **body, stream_options={"include_usage": True}
            )
        ]
        assert done == "[DONE]"
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and len(chunks) > 2
        text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
        assert text == "writer-model: one two three"
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["agentwire"]["channel"] == "text"
        assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 4
        assert len({chunk["id"] for chunk in [*chunks, last, usage]}) == 1

        label = [
            event
            async for event in client.events(
                "/chat/completions", model="llama->mistral", messages=body["messages"]
            )
        ]
        assert label[0]["choices"][0]["delta"]["content"] == answer("one two three", TASK.labels)
        cut = [
            event
            async for event in client.events(
                "/completions", model="writer", prompt="one two three", max_tokens=2
            )
        ]
        assert "".join(event["choices"][0]["text"] for event in cut[:-1]) == "writer-model: one"
        assert cut[-2]["choices"][0]["finish_reason"] == "length"


async def test_completions_take_several_prompts(url: str) -> None:
    async with Client(url) as client:
        body = {"model": "llama->mistral", "prompt": [FILM, "a cold film"]}
        response = (await client.http.post("/completions", json=body)).json()
        texts = [choice["text"] for choice in response["choices"]]
        assert texts == [answer(text, TASK.labels) for text in body["prompt"]]
        assert response["usage"]["soft_tokens"] == 16


@pytest.mark.parametrize("key", [None, "wrong" * 8])
async def test_requests_without_a_valid_key_are_refused(url: str, key: str | None) -> None:
    async with Client(url, key) as client:
        for response in (await client.chat("writer", "x"), await client.http.get("/models")):
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert (await client.http.get("/../healthz")).status_code == 200


async def in_flight(client: Client, requests: int) -> None:
    """Wait until the gateway works on so many requests."""
    metrics = ""
    async with asyncio.timeout(EVENT_S):
        while f"agentwire_gateway_in_flight {requests}.0" not in metrics:
            metrics = (await client.http.get("/../metrics")).text


async def test_limits_are_enforced() -> None:
    slow = deployment(writer={"token_ms": 100})
    limits = GatewayLimits(requests=4, requests_per_key=3, body_bytes=9000, body_s=1)
    async with gateway(slow, limits=limits) as url, Client(url) as ada, Client(url, BOB) as bob:
        held = [asyncio.create_task(ada.chat("writer", LONG, max_tokens=1000)) for _ in range(3)]
        await in_flight(ada, 3)
        refused = [await ada.chat("writer", "a fourth request of one key")]
        held.append(asyncio.create_task(bob.chat("writer", LONG, max_tokens=1000)))
        await in_flight(ada, 4)
        refused.append(await bob.chat("writer", "a fifth request of all keys"))
        for response in refused:
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await in_flight(ada, 0)
        assert (await ada.chat("writer", "x" * 10_000)).status_code == 413
        late = await ada.chat("writer", LONG, max_tokens=1000, agentwire={"timeout": 0.05})
        assert late.status_code == 504 and late.json()["error"]["code"] == "deadline"

        async def trickle() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(2)
            yield b"}"

        slow_body = await ada.http.post("/chat/completions", content=trickle())
        assert slow_body.status_code == 408
        assert await ada.text("writer", "fine") == "writer-model: fine"


async def test_disconnected_client_frees_its_agent() -> None:
    slow = deployment(writer={"token_ms": 100})
    async with gateway(slow) as url, Client(url) as client:
        body = {"model": "writer", "prompt": LONG, "max_tokens": 1000}
        with pytest.raises(httpx.ReadTimeout):
            await client.http.post("/completions", json=body, timeout=0.3)
        async for _ in client.events("/completions", **body):
            break
        answered = await asyncio.wait_for(client.text("writer", "next"), EVENT_S)
        assert answered == "writer-model: next"
        await in_flight(client, 0)


async def test_health_and_metrics() -> None:
    async with gateway() as url, Client(url) as client:
        await client.text("llama->mistral", FILM)
        health = (await client.http.get("/../healthz")).json()
        assert health["status"] == "ok" and set(health["agents"]) == {"llama", "mistral", "writer"}
        metrics = (await client.http.get("/../metrics")).text
        for line in (
            'agentwire_gateway_answers_total{channel="soft",model="llama->mistral",reason=""} 1.0',
            'agentwire_gateway_tokens_total{kind="soft",model="llama->mistral"} 8.0',
            "agentwire_bus_results_total 1.0",
        ):
            assert line in metrics
        assert (await client.http.get("/nothing")).json()["error"]["code"] == "unknown_url"
        assert (await client.http.get("/chat/completions")).status_code == 405
        wrong = await client.chat("writer", "x", messages=[{"role": "user", "content": 3}])
        assert wrong.status_code == 400


async def test_stream_survives_the_death_of_its_agent() -> None:
    slow = deployment(writer={"token_ms": 30})
    async with gateway(slow) as url, Client(url) as client:
        words = "one two three four five six seven eight nine ten eleven twelve"
        text, killed = "", False
        messages = [{"role": "user", "content": words}]
        async for event in client.events("/chat/completions", model="writer", messages=messages):
            if event == "[DONE]":
                break
            text += event["choices"][0]["delta"].get("content", "")
            if not killed and len(text) > 20:
                killed = True
                for child in psutil.Process(os.getpid()).children():
                    child.send_signal(signal.SIGKILL)
        assert killed and text == f"writer-model: {words}"
