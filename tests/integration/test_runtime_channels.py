"""Answers through real processes and sockets, with fake models."""

import asyncio
import contextlib
import math
import os
from pathlib import Path

import pytest
from fake_run import TASK, Events, fake_runtime, is_alive, my_children

from agentwire.errors import AgentwireError, BusClosed, NackCode, RequestError, ScenarioError
from agentwire.model.fake import answer
from agentwire.runtime import Reply
from agentwire.telemetry.counts import read_counts
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.integration

TEXTS = [f"review number {n}" for n in range(200)]


def expected(texts: list[str]) -> list[str]:
    return [answer(text, TASK.labels) for text in texts]


async def test_200_rows_through_the_soft_channel() -> None:
    journal = Events()
    async with fake_runtime(journal=journal) as wire:
        assert wire.agents["sender"].pid != wire.agents["receiver"].pid != os.getpid()
        replies = [r async for batch in wire.send_many("sender", "receiver", TEXTS) for r in batch]
        metrics = wire.metrics()
    assert [r.label for r in replies] == expected(TEXTS)
    assert {(r.channel, r.reason, r.payload_bytes) for r in replies} == {
        (Channel.SOFT, "", 8 * 16 * 2)
    }
    for reply in replies:
        assert sum(reply.stages.values()) == pytest.approx(reply.latency_ms)
        assert set(reply.stages) >= {"queue", "tokenize", "encode", "bridge", "decode", "wire"}
        assert all(ms >= 0 for ms in reply.stages.values())
        assert reply.label_index is not None and reply.label == TASK.labels[reply.label_index]
        assert sum(map(math.exp, reply.scores.values())) == pytest.approx(1.0)
    assert sorted(journal.ids("admitted")) == sorted(journal.ids("finished"))
    assert sorted(journal.ids("finished")) == sorted(r.request_id for r in replies)
    assert metrics["forwarded"] >= 2 * 13 and metrics["queued_messages"] == 0
    assert not my_children()


@pytest.mark.parametrize("rehearse", [False, True])
async def test_agents_with_asynchronous_devices(rehearse: bool, tmp_path: Path) -> None:
    """Batches are submitted and collected separately, with and without a warm-up."""
    fake = {"pipelined": True, "encode_ms": 1.0, "decode_ms": 1.0}
    async with fake_runtime(
        sender=fake, receiver=fake, rehearse=rehearse, run_folder=tmp_path
    ) as wire:
        replies = [r async for batch in wire.send_many("sender", "receiver", TEXTS) for r in batch]
        alone = [await wire.send("sender", "receiver", text) for text in TEXTS[:5]]
    assert [r.label for r in replies] == expected(TEXTS)
    assert [r.label for r in alone] == expected(TEXTS[:5])
    assert {r.channel for r in replies} == {Channel.SOFT}
    assert not my_children()
    # The warm-up is not counted.
    counts = read_counts(tmp_path / "logs")
    for agent, kind in (("sender", "encode"), ("receiver", "soft")):
        assert sum(int(rows) * n for rows, n in counts[agent][kind].items()) == len(TEXTS) + 5
    for log in (tmp_path / "logs").glob("*.log"):
        assert "warm-up" not in log.read_text()


async def test_text_relay_direct_and_free_text() -> None:
    async with fake_runtime() as wire:
        text = "one two three four"
        relayed = await wire.send("sender", "receiver", text, channel="text")
        assert (relayed.channel, relayed.reason) == (Channel.TEXT, "")
        assert relayed.label == answer("one two", TASK.labels)  # the sender's summary
        assert relayed.payload_bytes == len("one two") and "generate" in relayed.stages
        verbatim = await wire.send("sender", "receiver", text, channel="text", relay="verbatim")
        assert verbatim.label == answer(text, TASK.labels)
        for agent in ("sender", "receiver"):
            direct = await wire.direct(agent, text)
            assert (direct.label, direct.channel) == (answer(text, TASK.labels), Channel.TEXT)
        free = await wire.direct("receiver", text, prompt="Go on:", generate=3)
        assert (free.text, free.label, free.scores) == ("receiver-model: one two", None, {})
        own = await wire.send("sender", "receiver", text, prompt="Which?", labels=["yes", "no"])
        assert (own.label, own.channel) == (answer(text, ["yes", "no"]), Channel.SOFT)


async def test_answers_do_not_depend_on_the_batch() -> None:
    async with fake_runtime() as wire:
        runs = []
        for size in (1, 16):
            batches = wire.send_many("sender", "receiver", TEXTS[:64], batch_size=size)
            runs.append([reply.scores async for batch in batches for reply in batch])
    assert runs[0] == runs[1]


async def test_many_callers_at_once() -> None:
    async with fake_runtime() as wire:
        calls = [wire.send("sender", "receiver", text) for text in TEXTS]
        replies = await asyncio.gather(*calls)
    assert [r.label for r in replies] == expected(TEXTS)


@pytest.mark.parametrize(
    ("bridge", "reason"),
    [
        (None, NackCode.NO_BRIDGE),
        ("fake:another-model", NackCode.BRIDGE_MISMATCH),
        ("fake:receiver-model:" + "0" * 64, NackCode.PROMPT_MISMATCH),
    ],
)
async def test_without_a_valid_bridge_the_reply_names_the_reason(
    bridge: str | None, reason: NackCode
) -> None:
    async with fake_runtime(bridge=bridge) as wire:
        reply = await wire.send("sender", "receiver", "a b c", relay="verbatim")
        assert (reply.channel, reply.reason) == (Channel.TEXT, reason)
        assert reply.label == answer("a b c", TASK.labels)
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", "a b c", fallback="error")
        assert error.value.code is reason


async def test_only_the_row_with_a_nan_payload_goes_as_text() -> None:
    texts = [*TEXTS[:7], "a nan b", *TEXTS[7:15]]
    async with fake_runtime(sender={"nan_on": "nan"}) as wire:
        outcomes = await wire.send_batch("sender", "receiver", texts, relay="verbatim")
        replies = [o for o in outcomes if isinstance(o, Reply)]
        assert [r.label for r in replies] == expected(texts)
        assert [r.reason for r in replies] == [""] * 7 + ["bad_payload"] + [""] * 8
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", "nan", fallback="error")
    assert error.value.code is NackCode.BAD_PAYLOAD


async def test_a_model_that_raises_on_a_row() -> None:
    texts = [*TEXTS[:3], "boom", *TEXTS[3:6]]
    async with fake_runtime(receiver={"raise_on": "boom"}) as wire:
        outcomes = await wire.send_batch("sender", "receiver", texts, relay="verbatim")
        bad = outcomes.pop(3)
        assert isinstance(bad, RequestError) and bad.code is NackCode.MODEL_ERROR
        assert "the fake model raises" in bad.message
        assert [o.label for o in outcomes if isinstance(o, Reply)] == expected(TEXTS[:6])
    async with fake_runtime(sender={"raise_on": "boom"}) as wire:
        reply = await wire.send("sender", "receiver", "boom", relay="verbatim")
        assert (reply.label, reply.reason) == (answer("boom", TASK.labels), "model_error")


async def test_the_same_request_id_is_computed_once() -> None:
    request_id = "00112233445566778899aabbccddeeff"
    async with fake_runtime(sender={"encode_ms": 50}) as wire:
        calls = [wire.send("sender", "receiver", "text", request_id=request_id) for _ in range(5)]
        first, *others = await asyncio.gather(*calls)
        again = await wire.send("sender", "receiver", "text", request_id=request_id)
        assert all(reply is first for reply in (*others, again))
        assert first.request_id == request_id
        assert wire.metrics()["results"] == 1


async def test_deadline_and_cancellation() -> None:
    journal = Events()
    async with fake_runtime(sender={"encode_ms": 300}, journal=journal) as wire:
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", "late", deadline=0.05)
        assert error.value.code is NackCode.DEADLINE
        task = asyncio.create_task(wire.send("sender", "receiver", "cancelled"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await wire.send("sender", "receiver", "fine")).label == expected(["fine"])[0]
    outcomes = [fields["outcome"] for fields in journal.of("finished")]
    assert sorted(outcomes) == ["answered", "cancelled", "deadline"]


async def test_requests_beyond_the_bus_capacity_are_refused_at_the_deadline() -> None:
    async with fake_runtime(sender={"encode_ms": 400}, deployment={"batch_size": 1}) as wire:
        calls = [
            wire.send_batch("sender", "receiver", TEXTS[:16], deadline=0.3) for _ in range(120)
        ]
        outcomes = [o for batch in await asyncio.gather(*calls) for o in batch]
        codes = {o.code for o in outcomes if isinstance(o, RequestError)}
        assert len(outcomes) == 120 * 16
        assert codes == {NackCode.DEADLINE, NackCode.OVERLOADED}
        metrics = wire.metrics()
        # The bus may notice a deadline before the client does. Nothing else may be refused.
        refused = {name for name in metrics if name.startswith("refused")}
        assert refused <= {"refused.deadline"}


async def test_closing_send_many_early_cancels_the_rest() -> None:
    journal = Events()
    async with fake_runtime(journal=journal) as wire:
        async with contextlib.aclosing(wire.send_many("sender", "receiver", TEXTS)) as batches:
            async for _ in batches:
                break
        assert (await wire.send("sender", "receiver", "next")).label == expected(["next"])[0]
    assert sorted(journal.ids("admitted")) == sorted(journal.ids("finished"))
    assert len(journal.ids("admitted")) < len(TEXTS)


async def test_closing_ends_outstanding_requests() -> None:
    async with fake_runtime(sender={"encode_ms": 2000}) as wire:
        task = asyncio.create_task(wire.send("sender", "receiver", "text"))
        await asyncio.sleep(0.05)
        pids = [info.pid for info in wire.agents.values()]
    with pytest.raises(RequestError) as error:
        await task
    assert error.value.code is NackCode.CLOSING
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises(BusClosed):
        await wire.send("sender", "receiver", "text")
    await wire.aclose()
    with pytest.raises(AgentwireError):
        await wire.start()


async def test_bad_calls() -> None:
    async with fake_runtime(deployment={"task": None}) as wire:
        for call, words in [
            (wire.send("sender", "receiver", "x"), "no task"),
            (wire.send("receiver", "sender", "x", prompt="p"), "no wire"),
            (wire.send("nobody", "sender", "x", prompt="p"), "no agent"),
            (wire.direct("nobody", "x", prompt="p"), "no agent"),
            (wire.send("sender", "receiver", "x", prompt="p", bridge="other"), "uses bridge"),
            (wire.send("sender", "receiver", "x", prompt="p", deadline=0), "deadline"),
            (wire.send("sender", "receiver", "x", prompt="p", request_id="xyz"), "32 hex"),
            (wire.send("sender", "receiver", "x", prompt="p" * 100_000), "prompt"),
            (wire.send("sender", "receiver", "x", prompt="p", labels=["same", "same"]), "distinct"),
        ]:
            with pytest.raises(AgentwireError, match=words):
                await call
        long = "x" * 300_000
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", long, prompt="p")
        assert error.value.code is NackCode.TOO_LARGE
        fine = await wire.send("sender", "receiver", "x", prompt="p", labels=["a", "b"])
        assert fine.label == answer("x", ["a", "b"])
    with pytest.raises(ScenarioError):
        await wire.send("sender", "receiver", "x")
