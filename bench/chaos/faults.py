"""The faults: each breaks something at a random moment while rows are in flight.

A fault is a setup and a round. The rounds of a fault share a runtime if it survives them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from agentwire.agent.launching.limits import AgentLimits, RestartPolicy
from agentwire.errors import BusClosed, NackCode, RequestError
from agentwire.runtime.ledger import Admission
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from chaos.links import LinkFault
from chaos.rig import PLENTY, TEXTS, Answers, Rig, Setup, Tally

SPREAD_S = 0.12
"""The rows of one round take about this long. The fault occurs at a random moment within it."""
AGENTS = ("sender", "receiver")
Round: TypeAlias = Callable[[Rig, Tally, Answers], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One line of the fault matrix.

    Attributes:
        what: a description.
        setup: of the runtime.
        round: runs one round.
        fresh: whether every round needs a new runtime.
    """

    name: str
    what: str
    setup: Setup
    round: Round
    fresh: bool = False


async def _while_sending(rig: Rig, fault: Callable[[], None]) -> list[Outcome]:
    """Sends all rows and calls ``fault`` at a random moment."""
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    fault()
    return await sending


def signalled(agent: str, number: int) -> Round:
    async def round(rig: Rig, tally: Tally, expected: Answers) -> None:
        await rig.ready()
        outcomes = await _while_sending(rig, lambda: rig.signal(agent, number))
        tally.count(rig.journal, TEXTS, outcomes, expected)

    return round


async def replica_killed(rig: Rig, tally: Tally, expected: Answers) -> None:
    """One of several processes of an agent dies; the others take over its rows."""
    victim = rig.rng.choice([name for name in rig.runtime.agents if "." in name])
    pid = rig.pid(victim)
    outcomes = await _while_sending(rig, lambda: rig.signal(victim, signal.SIGKILL))
    tally.count(rig.journal, TEXTS, outcomes, expected)
    # Otherwise the death could be noticed in the next round only. That round's own victim would
    # then be the second death of its rows, which makes them dead letters.
    await rig.replaced(victim, pid)
    tally.notes.update(o.route for o in outcomes if isinstance(o, Reply))


async def spawn_fails(rig: Rig, tally: Tally, expected: Answers) -> None:
    """An agent dies, and for a while it cannot be started: the folder of its log is gone."""
    await rig.ready()
    away = rig.logs.with_name("away")
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    rig.logs.rename(away)
    rig.signal(rig.rng.choice(AGENTS), signal.SIGKILL)
    await asyncio.sleep(rig.rng.uniform(0.1, 1.0))
    away.rename(rig.logs)
    tally.count(rig.journal, TEXTS, await sending, expected)


async def journal_full(rig: Rig, tally: Tally, expected: Answers) -> None:
    """No line of the journal can be written while an agent dies and is restarted."""
    await rig.ready()
    rig.journal.full = True
    outcomes = await _while_sending(rig, lambda: rig.signal("sender", signal.SIGKILL))
    rig.journal.full = False
    tally.count(rig.journal, TEXTS, outcomes, expected)
    if not rig.runtime.status()["faults"]["journal"]["count"]:
        tally.add_problem("the journal's failures were not counted")
        tally.wrong += 1


async def stuck_compute(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The model never returns for one row, which alone becomes a dead letter."""
    await rig.ready()
    texts = list(TEXTS)
    place = rig.rng.randrange(len(texts))
    texts[place] = "hang"
    outcomes: list[Outcome | None] = list(await rig.send(texts))
    excused = frozenset({NackCode.DEAD_LETTER})
    right = dict(expected) | {"hang": (None, ())}  # any answer is wrong
    tally.count(rig.journal, texts, outcomes, right, excused)


async def slow_start(rig: Rig, tally: Tally, expected: Answers) -> None:
    """An agent dies, loads slowly, and may die again while it loads."""
    await rig.ready()
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    rig.signal("receiver", signal.SIGKILL)
    await asyncio.sleep(rig.rng.uniform(0.1, 1.0))
    tally.count(rig.journal, TEXTS, await sending, expected)


async def out_of_memory(rig: Rig, tally: Tally, expected: Answers) -> None:
    """Batches that do not fit are halved; a row that does not fit alone is refused."""
    texts = list(TEXTS)
    texts[rig.rng.randrange(len(texts))] = "huge"
    outcomes = await rig.send(texts)
    right = dict(expected) | {"huge": (None, ())}
    tally.count(rig.journal, texts, outcomes, right, frozenset({NackCode.MODEL_ERROR}))


def repeated_crash(excused: frozenset[NackCode]) -> Round:
    """The sender dies until its restart budget is spent."""

    async def round(rig: Rig, tally: Tally, expected: Answers) -> None:
        texts = list(TEXTS)
        texts[rig.rng.randrange(len(texts))] = "poison"
        sending = asyncio.create_task(rig.send(texts))
        await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
        rig.signal("sender", signal.SIGKILL)
        right = dict(expected) | {"poison": (None, ())}
        # Where the policy relays text, the row reaches the receiver, which survives it.
        tally.count(
            rig.journal,
            texts,
            await sending,
            right | await _receiver_answer(rig, "poison", excused),
            excused,
        )

    return round


async def _receiver_answer(rig: Rig, text: str, excused: frozenset[NackCode]) -> Answers:
    """The receiver's answer to a text, where the policy relays text."""
    from chaos.rig import answer_of

    if NackCode.AGENT_DOWN in excused:
        return {}
    return {text: answer_of(await rig.runtime.direct("receiver", text))}


async def agent_stopped(rig: Rig, tally: Tally, expected: Answers) -> None:
    """SIGTERM: the agent answers its rows and exits; the next incarnation gets the rest."""
    await rig.ready()
    victim = rig.rng.choice(AGENTS)
    outcomes = await _while_sending(rig, lambda: rig.signal(victim, signal.SIGTERM))
    tally.count(rig.journal, TEXTS, outcomes, expected)


async def drained(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The runtime closes while rows are outstanding; admitted rows are answered first."""
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    await rig.runtime.aclose(drain_s=30.0)
    with contextlib.suppress(BusClosed):
        tally.count(rig.journal, TEXTS, await sending, expected)


async def link_cut(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The connection of the client or of an agent breaks; its process survives."""
    await rig.ready()

    def cut() -> None:
        rig.link.cut(rig.rng.randrange(max(1, rig.link.connections())))

    outcomes = await _while_sending(rig, cut)
    tally.count(rig.journal, TEXTS, outcomes, expected)


def disturbed(fault: LinkFault, *, chance: float, times: int) -> Round:
    async def round(rig: Rig, tally: Tally, expected: Answers) -> None:
        await rig.ready()
        before = rig.link.affected
        rig.link.inject(fault, chance=chance, times=times)
        outcomes = await rig.send()
        rig.link.inject(fault, chance=0.0, times=0)
        tally.notes["messages affected"] += rig.link.affected - before
        tally.count(rig.journal, TEXTS, outcomes, expected)

    return round


async def deadlines(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The deadline is too short for all rows."""
    outcomes = await rig.send(deadline=rig.rng.uniform(0.005, SPREAD_S))
    excused = frozenset({NackCode.DEADLINE, NackCode.OVERLOADED})
    tally.count(rig.journal, TEXTS, outcomes, expected, excused)


async def cancelled(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The caller goes away; agents drop the rows that they have not computed."""
    before = rig.runtime.metrics().get("results", 0)
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S / 2))
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    await rig.runtime.direct("sender", "after", deadline=60.0)
    await rig.runtime.direct("receiver", "after", deadline=60.0)
    tally.notes["messages answered anyway"] += rig.runtime.metrics()["results"] - before - 2
    tally.requests += len(TEXTS)
    tally.count(rig.journal, (), (), expected)


async def overload(rig: Rig, tally: Tally, expected: Answers) -> None:
    """More is sent than may be outstanding; the rest is refused with a time to retry."""
    calls = [rig.send() for _ in range(4)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        outcomes: list[Outcome | None]
        if isinstance(result, RequestError) and result.code is NackCode.OVERLOADED:
            outcomes = [result] * len(TEXTS)
            if not result.retry_after_s:
                tally.wrong += 1
        elif isinstance(result, BaseException):
            raise result
        else:
            outcomes = list(result)
        await asyncio.sleep(0)
        tally.count(rig.journal, TEXTS, outcomes, expected, frozenset({NackCode.OVERLOADED}))


TIGHT = AgentLimits(
    load_s=30.0, progress_s=60.0, stop_s=5.0, restarts=RestartPolicy(1, 60.0, (0.0,))
)
STUCK = AgentLimits(load_s=30.0, progress_s=0.6, stop_s=5.0, restarts=PLENTY)
PLAIN = Setup()
MESSAGES, BYTES = Setup(link="messages"), Setup(link="bytes")
CRASHING = Setup(sender={"crash_on": "poison"}, limits=TIGHT)

FAULTS: tuple[Fault, ...] = (
    Fault("sender_killed", "sender gets SIGKILL", PLAIN, signalled("sender", signal.SIGKILL)),
    Fault("receiver_killed", "receiver gets SIGKILL", PLAIN, signalled("receiver", signal.SIGKILL)),
    Fault(
        "replica_killed",
        "one of two senders or of two receivers gets SIGKILL",
        Setup(replicas={"sender": 2, "receiver": 2}),
        replica_killed,
    ),
    Fault("spawn_fails", "an agent dies and cannot be spawned for a while", PLAIN, spawn_fails),
    Fault("journal_full", "the disk of the journal is full", PLAIN, journal_full),
    Fault("sender_hangs", "sender gets SIGSTOP", PLAIN, signalled("sender", signal.SIGSTOP)),
    Fault("receiver_hangs", "receiver gets SIGSTOP", PLAIN, signalled("receiver", signal.SIGSTOP)),
    Fault(
        "compute_stuck",
        "the model never returns, the socket thread is healthy",
        Setup(sender={"hang_on": "hang"}, limits=STUCK),
        stuck_compute,
    ),
    Fault(
        "slow_start",
        "receiver dies and loads slowly",
        Setup(receiver={"load_ms": 800.0}),
        slow_start,
    ),
    Fault(
        "out_of_memory",
        "the device holds two rows, and one row never fits",
        Setup(sender={"memory_rows": 2, "memory_on": "huge"}, fallback="error"),
        out_of_memory,
    ),
    Fault(
        "crashes_fail_fast",
        "sender's restart budget is spent: the wire is down",
        CRASHING,
        repeated_crash(frozenset({NackCode.DEAD_LETTER, NackCode.AGENT_DOWN})),
        fresh=True,
    ),
    Fault(
        "crashes_go_as_text",
        "the same where the wire says when_down: text",
        replace(CRASHING, when_down="text"),
        repeated_crash(frozenset({NackCode.DEAD_LETTER})),
        fresh=True,
    ),
    Fault("agent_stopped", "an agent gets SIGTERM and drains", PLAIN, agent_stopped),
    Fault("runtime_drained", "the runtime closes with a drain", PLAIN, drained, fresh=True),
    Fault("link_cut", "a connection to the broker is cut", BYTES, link_cut),
    Fault(
        "message_lost",
        "one message is dropped",
        MESSAGES,
        disturbed(LinkFault.DROP, chance=0.1, times=1),
    ),
    Fault(
        "message_repeated",
        "a third of all messages is duplicated",
        MESSAGES,
        disturbed(LinkFault.DUPLICATE, chance=0.3, times=1_000),
    ),
    Fault(
        "messages_swapped",
        "two messages are reordered",
        MESSAGES,
        disturbed(LinkFault.REORDER, chance=0.1, times=1),
    ),
    Fault("deadline", "the deadline is too short", PLAIN, deadlines),
    Fault("cancelled", "the caller goes away", PLAIN, cancelled),
    Fault(
        "overload", "more is sent than is admitted", Setup(admission=Admission(rows=96)), overload
    ),
)
