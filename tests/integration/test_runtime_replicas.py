"""Replicas with real processes: they share the work, and one of them may die."""

import asyncio
import os
import signal
from collections import Counter

import pytest
from fake_run import TASK, Events, fake_runtime, my_children, until

from agentwire.errors import NackCode, RequestError
from agentwire.model.fake import answer
from agentwire.runtime.reply import Reply

pytestmark = pytest.mark.integration

TEXTS = [f"review number {n}" for n in range(96)]
SLOW = {"encode_ms": 5, "decode_ms": 15}


def expected(texts: list[str]) -> list[str]:
    return [answer(text, TASK.labels) for text in texts]


async def test_two_replicas_share_the_work_and_answer_like_one() -> None:
    deployment = {"replicas": {"receiver": 2}, "in_flight": 4}
    async with fake_runtime(sender=SLOW, receiver=SLOW, deployment=deployment) as wire:
        assert set(wire.agents) == {"sender", "receiver.1", "receiver.2"}
        assert len({info.pid for info in wire.agents.values()}) == 3
        replies = [
            r
            async for batch in wire.send_many("sender", "receiver", TEXTS, batch_size=8)
            for r in batch
        ]
        assert [reply.label for reply in replies] == expected(TEXTS)
        assert {reply.channel for reply in replies} == {"soft"}
        share = Counter(reply.route for reply in replies)
        assert set(share) == {"sender->receiver.1", "sender->receiver.2"}
        assert min(share.values()) >= 16
        outcomes = {row[0]: row[2] for row in wire.status()["outcomes"]}
        assert outcomes == dict(share)
        assert set(wire.status()["credits"]) >= {"sender->receiver.1", "@receiver.2"}
        direct = await asyncio.gather(*(wire.direct("receiver", text) for text in TEXTS[:8]))
        assert [reply.label for reply in direct] == expected(TEXTS[:8])
        assert {reply.route for reply in direct} == {"@receiver.1", "@receiver.2"}


@pytest.mark.parametrize("victim", ["receiver.1", "sender.2"])
async def test_a_killed_replica_costs_only_time(victim: str) -> None:
    journal = Events()
    deployment = {"replicas": {"receiver": 2, "sender": 2}, "in_flight": 6}
    async with fake_runtime(
        sender=SLOW, receiver=SLOW, journal=journal, deployment=deployment
    ) as wire:
        pid = wire.agents[victim].pid
        labels: list[str | None] = []
        routes: list[str] = []
        async for batch in wire.send_many("sender", "receiver", TEXTS, batch_size=8):
            labels += [reply.label for reply in batch]
            routes += [reply.route for reply in batch]
            if len(labels) == 16:
                os.kill(pid, signal.SIGKILL)
        assert labels == expected(TEXTS)
        ids = journal.ids("finished")
        assert len(ids) == len(set(ids)) == len(TEXTS)
        assert {fields["outcome"] for fields in journal.of("finished")} == {"answered"}
        used = {process for route in routes for process in route.split("->")}
        assert used == {"sender.1", "sender.2", "receiver.1", "receiver.2"}
        back = await wire.send_batch("sender", "receiver", TEXTS)
        assert [o.label for o in back if isinstance(o, Reply)] == expected(TEXTS)
        await until(lambda: wire.agents[victim].epoch == 2, "it is started again")
    assert not my_children()


async def test_a_poison_row_kills_two_replicas_and_no_other_row() -> None:
    texts = [*TEXTS[:20], "poison", *TEXTS[20:40]]
    deployment = {"replicas": {"receiver": 2}}
    async with fake_runtime(receiver={"crash_on": "poison"}, deployment=deployment) as wire:
        calls = [wire.send_batch("sender", "receiver", texts[i : i + 8]) for i in range(0, 41, 8)]
        outcomes = [o for batch in await asyncio.gather(*calls) for o in batch]
        dead = outcomes.pop(20)
        assert isinstance(dead, RequestError) and dead.code is NackCode.DEAD_LETTER
        assert [o.label for o in outcomes if isinstance(o, Reply)] == expected(TEXTS[:40])


async def test_a_kept_payload_is_asked_of_the_replica_that_has_it() -> None:
    deployment = {"replicas": {"sender": 3, "receiver": 2}}
    async with fake_runtime(deployment=deployment) as wire:
        kept = await asyncio.gather(*(wire.keep("sender", "receiver", t) for t in TEXTS[:6]))
        assert len({payload.process for payload in kept}) == 3
        replies = [await wire.send("sender", "receiver", payload) for payload in (*kept, *kept)]
        assert [reply.label for reply in replies] == expected(TEXTS[:6]) * 2
        for payload, reply in zip((*kept, *kept), replies, strict=True):
            assert reply.route.startswith(f"{payload.process}->") and reply.channel == "soft"
        together = await wire.send_batch("sender", "receiver", kept)
        assert [o.label for o in together if isinstance(o, Reply)] == expected(TEXTS[:6])
        os.kill(wire.agents[kept[0].process].pid, signal.SIGKILL)
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", kept[0])
        assert error.value.code is NackCode.EXPIRED
        other = next(k for k in kept if k.process != kept[0].process)
        assert (await wire.send("sender", "receiver", other)).channel == "soft"
