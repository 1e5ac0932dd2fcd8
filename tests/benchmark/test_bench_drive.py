"""Sending and counting, against answers that come when the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

import pytest

from agentwire.benchmark.drive import MessageStats, batches, one_by_one, sustained, warm
from agentwire.errors import NackCode, RequestError

TEXTS = [f"text {n}" for n in range(5)]


class Server:
    """Answers after some turns of the event loop; keeps count of what is outstanding."""

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns
        self.outstanding = self.most = self.answered = 0
        self.seen: list[list[str]] = []

    async def __call__(self, texts: Sequence[str]) -> MessageStats:
        self.seen.append(list(texts))
        self.outstanding += 1
        self.most = max(self.most, self.outstanding)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.outstanding -= 1
        self.answered += 1
        return MessageStats({"decode": 1.0}, 7)


def test_messages_take_the_texts_in_turn() -> None:
    taken = list(islice(batches(TEXTS, 3), 4))
    assert [len(batch) for batch in taken] == [3] * 4
    assert [text for batch in taken for text in batch] == [TEXTS[n % 5] for n in range(12)]


async def test_latency_has_one_message_outstanding() -> None:
    server = Server()
    burst = await one_by_one(server, batches(TEXTS, 2), most=6, least=3, seconds=60)
    assert server.most == 1 and server.answered == 6
    assert len(burst.latencies_ms) == len(burst.stages_ms) == 6
    assert burst.rows_per_s is None and burst.payload_bytes == 7


async def test_latency_ends_when_its_time_is_over_but_not_before_the_least() -> None:
    server = Server()
    await one_by_one(server, batches(TEXTS, 1), most=1000, least=4, seconds=0)
    assert server.answered == 4


async def test_throughput_keeps_the_pipeline_full_and_counts_only_then() -> None:
    server = Server()
    burst = await sustained(server, batches(TEXTS, 2), in_flight=4, seconds=0.02)
    assert server.most == 4 and server.outstanding == 0
    assert len(burst.latencies_ms) == server.answered
    assert burst.rows == 2 * (server.answered - 4)  # the first four filled it
    assert burst.rows_per_s == pytest.approx(burst.rows / burst.seconds)


async def test_throughput_of_something_slow_still_has_a_rate() -> None:
    server = Server()
    burst = await sustained(server, batches(TEXTS, 1), in_flight=2, seconds=1e-9)
    assert burst.rows >= 1 and burst.rows_per_s is not None


async def test_an_error_ends_the_cell_and_leaves_nothing_running() -> None:
    server = Server()

    async def send(texts: Sequence[str]) -> MessageStats:
        if server.answered >= 5:
            raise RequestError(NackCode.AGENT_DOWN, "gone")
        return await server(texts)

    with pytest.raises(RequestError):
        await sustained(send, batches(TEXTS, 1), in_flight=3, seconds=60)
    assert len(asyncio.all_tasks()) == 1


async def test_warming_up_is_not_counted() -> None:
    server = Server()
    messages = batches(TEXTS, 1)
    await warm(server, messages, 2)
    assert server.answered == 2
    assert next(messages) == [TEXTS[2]]
