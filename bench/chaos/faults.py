"""The faults: each breaks something at a random moment while rows are on their way.

A fault is a setup and a round. Rounds of one fault share a runtime where it survives them.
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
from chaos.links import Harm
from chaos.rig import PLENTY, TEXTS, Answers, Rig, Setup, Tally

SPREAD_S = 0.12
"""Rows of one round take about so long; the fault comes at a random moment of it."""
AGENTS = ("sender", "receiver")
Round: TypeAlias = Callable[[Rig, Tally, Answers], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One line of the fault matrix.

    Attributes:
        what: for people.
        setup: of the runtime.
        round: one round; None where a round needs a process of its own (``runner``).
        fresh: every round has a new runtime.
    """

    name: str
    what: str
    setup: Setup
    round: Round
    fresh: bool = False


async def _while_sending(rig: Rig, harm: Callable[[], None]) -> list[Outcome]:
    """All rows, and ``harm`` at a random moment."""
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    harm()
    return await sending


def signalled(agent: str, number: int) -> Round:
    async def round(rig: Rig, tally: Tally, expected: Answers) -> None:
        await rig.ready()
        outcomes = await _while_sending(rig, lambda: rig.signal(agent, number))
        tally.count(rig.books, TEXTS, outcomes, expected)

    return round


async def replica_killed(rig: Rig, tally: Tally, expected: Answers) -> None:
    """One of several processes of an agent dies: the others take over what it had."""
    victim = rig.rng.choice([name for name in rig.runtime.agents if "." in name])
    pid = rig.pid(victim)
    outcomes = await _while_sending(rig, lambda: rig.signal(victim, signal.SIGKILL))
    tally.count(rig.books, TEXTS, outcomes, expected)
    # Killed after its last row, it would be found dead in the next round, whose own victim would
    # be the second death of the same rows: which is a dead letter, as promised.
    await rig.replaced(victim, pid)
    tally.notes.update(o.route for o in outcomes if isinstance(o, Reply))


async def stuck_compute(rig: Rig, tally: Tally, expected: Answers) -> None:
    """A row on which the model never returns: it alone ends, as a dead letter."""
    await rig.ready()
    texts = list(TEXTS)
    place = rig.rng.randrange(len(texts))
    texts[place] = "hang"
    outcomes: list[Outcome | None] = list(await rig.send(texts))
    excused = frozenset({NackCode.DEAD_LETTER})
    right = dict(expected) | {"hang": (None, ())}  # no answer is right
    tally.count(rig.books, texts, outcomes, right, excused)


async def slow_start(rig: Rig, tally: Tally, expected: Answers) -> None:
    """An agent that dies comes back slowly, and may die again while it loads."""
    await rig.ready()
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    rig.signal("receiver", signal.SIGKILL)
    await asyncio.sleep(rig.rng.uniform(0.1, 1.0))
    tally.count(rig.books, TEXTS, await sending, expected)


async def out_of_memory(rig: Rig, tally: Tally, expected: Answers) -> None:
    """Batches that do not fit are halved; a row that does not fit alone is refused."""
    texts = list(TEXTS)
    texts[rig.rng.randrange(len(texts))] = "huge"
    outcomes = await rig.send(texts)
    right = dict(expected) | {"huge": (None, ())}
    tally.count(rig.books, texts, outcomes, right, frozenset({NackCode.MODEL_ERROR}))


def repeated_crash(excused: frozenset[NackCode]) -> Round:
    """The sender dies until its budget is spent."""

    async def round(rig: Rig, tally: Tally, expected: Answers) -> None:
        texts = list(TEXTS)
        texts[rig.rng.randrange(len(texts))] = "poison"
        sending = asyncio.create_task(rig.send(texts))
        await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
        rig.signal("sender", signal.SIGKILL)
        right = dict(expected) | {"poison": (None, ())}
        # As text by policy, the row reaches the receiver, which it does not kill.
        tally.count(
            rig.books, texts, await sending, right | await _asked(rig, "poison", excused), excused
        )

    return round


async def _asked(rig: Rig, text: str, excused: frozenset[NackCode]) -> Answers:
    """What the receiver answers to a text, where text is the policy."""
    from chaos.rig import answer_of

    if NackCode.AGENT_DOWN in excused:
        return {}
    return {text: answer_of(await rig.runtime.direct("receiver", text))}


async def agent_stopped(rig: Rig, tally: Tally, expected: Answers) -> None:
    """SIGTERM: the agent answers what it has, and leaves; its next incarnation takes the rest."""
    await rig.ready()
    victim = rig.rng.choice(AGENTS)
    outcomes = await _while_sending(rig, lambda: rig.signal(victim, signal.SIGTERM))
    tally.count(rig.books, TEXTS, outcomes, expected)


async def drained(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The runtime closes while rows are outstanding: what was admitted is answered first."""
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S))
    await rig.runtime.aclose(drain_s=30.0)
    with contextlib.suppress(BusClosed):
        tally.count(rig.books, TEXTS, await sending, expected)


async def link_cut(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The connection of the client or of an agent breaks; its process lives."""
    await rig.ready()

    def cut() -> None:
        rig.link.cut(rig.rng.randrange(max(1, rig.link.connections())))

    outcomes = await _while_sending(rig, cut)
    tally.count(rig.books, TEXTS, outcomes, expected)


def harmed(harm: Harm, *, chance: float, times: int) -> Round:
    async def round(rig: Rig, tally: Tally, expected: Answers) -> None:
        await rig.ready()
        before = rig.link.harmed
        rig.link.plan(harm, chance=chance, times=times)
        outcomes = await rig.send()
        rig.link.plan(harm, chance=0.0, times=0)
        tally.notes["messages harmed"] += rig.link.harmed - before
        tally.count(rig.books, TEXTS, outcomes, expected)

    return round


async def deadlines(rig: Rig, tally: Tally, expected: Answers) -> None:
    """Rows have less time than all of them need."""
    outcomes = await rig.send(deadline=rig.rng.uniform(0.005, SPREAD_S))
    excused = frozenset({NackCode.DEADLINE, NackCode.OVERLOADED})
    tally.count(rig.books, TEXTS, outcomes, expected, excused)


async def cancelled(rig: Rig, tally: Tally, expected: Answers) -> None:
    """The caller goes away; the agents drop what they have not computed."""
    before = rig.runtime.metrics().get("results", 0)
    sending = asyncio.create_task(rig.send())
    await asyncio.sleep(rig.rng.uniform(0.0, SPREAD_S / 2))
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    await rig.runtime.direct("sender", "after", deadline=60.0)
    await rig.runtime.direct("receiver", "after", deadline=60.0)
    tally.notes["messages answered all the same"] += rig.runtime.metrics()["results"] - before - 2
    tally.requests += len(TEXTS)
    tally.count(rig.books, (), (), expected)


async def overload(rig: Rig, tally: Tally, expected: Answers) -> None:
    """More is asked than may be outstanding: the rest is refused at once, and says for how long."""
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
        tally.count(rig.books, TEXTS, outcomes, expected, frozenset({NackCode.OVERLOADED}))


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
        "receiver dies and takes long to load",
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
    Fault("message_lost", "one message vanishes", MESSAGES, harmed(Harm.LOSE, chance=0.1, times=1)),
    Fault(
        "message_repeated",
        "a third of all messages comes twice",
        MESSAGES,
        harmed(Harm.REPEAT, chance=0.3, times=1_000),
    ),
    Fault(
        "messages_swapped",
        "two messages change places",
        MESSAGES,
        harmed(Harm.SWAP, chance=0.1, times=1),
    ),
    Fault("deadline", "rows have too little time", PLAIN, deadlines),
    Fault("cancelled", "the caller goes away", PLAIN, cancelled),
    Fault(
        "overload", "more is asked than is admitted", Setup(admission=Admission(rows=96)), overload
    ),
)
