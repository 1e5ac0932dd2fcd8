"""Free text, streams and kept payloads through real processes and sockets."""

import asyncio
import contextlib
import os
import signal

import pytest
from fake_run import TASK, fake_runtime, until

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.model.fake import answer, text_hash
from agentwire.runtime import GenerationOptions, Reply
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.integration

FREE_TEXT = "fake:receiver-model:any:free_text"
WORDS = "one two three four five six"


async def test_a_stream_yields_pieces_and_then_the_reply() -> None:
    async with fake_runtime(bridge=FREE_TEXT) as wire:
        options = GenerationOptions(max_new_tokens=20)
        got = [
            event
            async for event in wire.stream(
                "sender", "receiver", WORDS, prompt="Go on:", generate=options
            )
        ]
        *pieces, reply = got
        assert isinstance(reply, Reply) and len(pieces) > 1
        assert "".join(map(str, pieces)) == reply.text
        assert reply.text == f"receiver-model: soft {text_hash(WORDS):08x}"
        assert (reply.channel, reply.reason) == (Channel.SOFT, "")
        assert (reply.prompt_tokens, reply.completion_tokens) == (8 + 2, 3)
        sent = await wire.send("sender", "receiver", WORDS, prompt="Go on:", generate=options)
        assert sent.text == reply.text
        got = [event async for event in wire.direct_stream("receiver", WORDS, prompt="Go on:")]
        assert "".join(map(str, got[:-1])) == f"receiver-model: {WORDS}"
        got = [event async for event in wire.stream("sender", "receiver", WORDS)]
        assert [type(event) for event in got] == [Reply]  # labels are not streamed


async def test_a_bridge_for_labels_never_generates_text() -> None:
    async with fake_runtime() as wire:
        reply = await wire.send("sender", "receiver", WORDS, prompt="Go on:", generate=9)
        assert (reply.channel, reply.reason) == (Channel.TEXT, NackCode.UNSUPPORTED)
        assert reply.text == f"receiver-model: {WORDS}"
        with pytest.raises(RequestError, match="trained for answers in label words") as error:
            await wire.send(
                "sender", "receiver", WORDS, prompt="Go on:", generate=9, fallback="error"
            )
        assert error.value.code is NackCode.UNSUPPORTED


async def test_options_reach_the_receiver() -> None:
    async with fake_runtime() as wire:
        options = GenerationOptions(max_new_tokens=30, stop=("four",))
        reply = await wire.direct("receiver", WORDS, prompt="Go on:", generate=options)
        assert reply.text == "receiver-model: one two three"
        for limit, text in ((4, "receiver-model: one two three"), (5, reply.text)):
            short = GenerationOptions(limit, stop=("four",))
            cut = await wire.direct("receiver", WORDS, prompt="Go on:", generate=short)
            assert (cut.text, cut.completion_tokens) == (text, 4)  # stopped before the limit of 5
        chat = '[{"role": "user", "content": "hello there"}]'
        reply = await wire.direct("receiver", chat, prompt="", generate=options, form="chat")
        assert reply.text == "receiver-model: hello there"
        with pytest.raises(RequestError) as error:
            await wire.direct("receiver", "no chat", prompt="", generate=options, form="chat")
        assert error.value.code is NackCode.MALFORMED
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"stop": ("",)}, {"max_new_tokens": 0}):
        with pytest.raises(ScenarioError):
            GenerationOptions(**wrong)


async def test_closing_a_stream_early_stops_the_generation() -> None:
    async with fake_runtime(receiver={"token_ms": 150}) as wire:
        long = " ".join(["word"] * 500)
        stream = wire.direct_stream("receiver", long, prompt="p", generate=500)
        async with contextlib.aclosing(stream):
            async for _ in stream:
                break
        # 500 words would take 75 s. The next answer comes once the first is cancelled.
        reply = await wire.direct("receiver", "x", prompt="p", generate=5, deadline=60)
        assert reply.text == "receiver-model: x"


async def test_a_stream_continues_after_its_agent_dies() -> None:
    async with fake_runtime(receiver={"token_ms": 30}) as wire:
        pid = wire.agents["receiver"].pid
        pieces: list[str] = []
        async for event in wire.direct_stream("receiver", WORDS * 3, prompt="p", generate=90):
            if isinstance(event, Reply):
                assert event.text == "".join(pieces) == f"receiver-model: {WORDS * 3}"
            else:
                pieces.append(event)
                if len(pieces) == 3:
                    os.kill(pid, signal.SIGKILL)
        assert wire.agents["receiver"].pid != pid


async def test_a_kept_payload_answers_like_the_text_and_expires_with_its_sender() -> None:
    async with fake_runtime() as wire:
        texts = ["a warm film", "a cold film"]
        kept = await asyncio.gather(*(wire.keep("sender", "receiver", text) for text in texts))
        assert {(k.channel, k.reason, k.payload_bytes) for k in kept} == {(Channel.SOFT, "", 256)}
        outcomes = await wire.send_batch("sender", "receiver", list(kept))
        assert [o.label for o in outcomes if isinstance(o, Reply)] == [
            answer(text, TASK.labels) for text in texts
        ]
        again = await wire.send("sender", "receiver", kept[0], prompt="Is it?", labels=["y", "n"])
        assert (again.label, again.channel) == (answer(texts[0], ["y", "n"]), Channel.SOFT)
        free = await wire.send("sender", "receiver", kept[0], prompt="p", generate=9)
        assert (free.text, free.reason) == (f"receiver-model: {texts[0]}", "unsupported")
        with pytest.raises(ScenarioError, match="cannot mix"):
            await wire.send_batch("sender", "receiver", [kept[0], "a text"])
        pid = wire.agents["sender"].pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: wire.agents["sender"].pid != pid, "the sender is back")
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", kept[0])
        assert error.value.code is NackCode.EXPIRED
