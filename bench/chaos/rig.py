"""Runtimes of two fake agents that are broken on purpose, and the books on what became of rows.

Agents are real processes, sockets are real; only the models are fake, so that a row's right answer
is known and takes milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fakes import two_agents

from agentwire.agent.launching.limits import AgentLimits, RestartPolicy
from agentwire.bus.broker import Broker
from agentwire.errors import NackCode, RequestError
from agentwire.runtime import Runtime, lifecycle
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from agentwire.spec.agent import FakeModel
from agentwire.wire.session import Timing
from chaos.links import ByteLink, MessageLink, beside

ROWS = 48
BATCH = 4
TEXTS = tuple(f"review number {n}" for n in range(ROWS))
PLENTY = RestartPolicy(restarts=10_000, window_s=60.0, backoff_s=(0.0,))
PATIENT = AgentLimits(load_s=30.0, progress_s=60.0, stop_s=5.0, restarts=PLENTY)
TIMING = Timing(ping_ms=150, liveness_ms=1_500, handshake_ms=20_000)
Answers: TypeAlias = dict[str, tuple[str | None, tuple[tuple[str, float], ...]]]


def answer_of(reply: Reply) -> tuple[str | None, tuple[tuple[str, float], ...]]:
    """What two runs must agree on: the label and every score, bit for bit."""
    return reply.label, tuple(reply.scores.items())


class Books:
    """A journal in memory: which requests were admitted, and how often each has ended."""

    def __init__(self) -> None:
        self.admitted: set[str] = set()
        self.ends: Counter[str] = Counter()

    def write(self, event: str, **fields: Any) -> None:
        if event == "admitted":
            self.admitted.update(fields["request_ids"])
        elif event == "finished":
            self.ends.update(fields["request_ids"])


@dataclass
class Tally:
    """What became of the requests of one fault.

    Attributes:
        lost: requests that were admitted and have no outcome.
        duplicated: requests with more than one outcome.
        wrong: rows whose answer differs from the run without faults, or that ended in an error
            which this fault does not excuse.
        errors: excused errors, by code.
        notes: figures of the fault itself.
    """

    rounds: int = 0
    requests: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)

    def count(
        self,
        books: Books,
        texts: Sequence[str],
        outcomes: Sequence[Outcome | None],
        expected: Answers,
        excused: frozenset[NackCode] = frozenset(),
    ) -> None:
        """Takes in one round: an outcome for each text; None where the call gave none."""
        self.requests += len(texts)
        for text, outcome in zip(texts, outcomes, strict=True):
            if outcome is None:
                self.lost += 1
                self.complain(f"{text!r}: no outcome")
            elif isinstance(outcome, RequestError):
                if outcome.code in excused:
                    self.errors[outcome.code.value] += 1
                else:
                    self.wrong += 1
                    self.complain(f"{text!r}: {outcome}")
            elif answer_of(outcome) != expected[text]:
                self.wrong += 1
                self.complain(f"{text!r}: {answer_of(outcome)} is not {expected[text]}")
        unfinished = books.admitted - books.ends.keys()
        self.lost += len(unfinished)
        twice = [request_id for request_id, times in books.ends.items() if times > 1]
        self.duplicated += len(twice)
        for request_id in [*unfinished, *twice]:
            self.complain(f"request {request_id} ended {books.ends[request_id]} times")
        books.admitted.clear()
        books.ends.clear()

    def complain(self, what: str) -> None:
        """Says what is wrong, for people."""
        if len(self.complaints) < 10:
            self.complaints.append(what)


@dataclass(frozen=True)
class Setup:
    """How a fault's runtime differs from the plain one."""

    sender: dict[str, Any] = field(default_factory=dict)
    receiver: dict[str, Any] = field(default_factory=dict)
    fallback: str = "text"
    when_down: str = "error"
    limits: AgentLimits = PATIENT
    admission: Admission | None = None
    replicas: Mapping[str, int] = field(default_factory=dict)
    link: str = ""  # "": none; "messages" or "bytes": every peer connects through one


class Rig:
    """One running runtime, its books, and the link that its peers go through."""

    def __init__(self, runtime: Runtime, books: Books, rng: random.Random) -> None:
        self.runtime = runtime
        self.books = books
        self.rng = rng
        self.link: Any = None  # a MessageLink or a ByteLink

    def pid(self, agent: str) -> int:
        return self.runtime.agents[agent].pid

    async def replaced(self, process: str, pid: int) -> None:
        """Returns when an incarnation after the one with this pid is ready."""
        for _ in range(3_000):
            if self.pid(process) != pid:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{process} does not come back")

    def signal(self, agent: str, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it died of the last round's signal
            os.kill(self.pid(agent), number)

    async def send(
        self, texts: Sequence[str] = TEXTS, *, ids: Sequence[str] | None = None, **question: Any
    ) -> list[Outcome]:
        """All texts, in batches that are all outstanding at once; one outcome each."""
        question.setdefault("deadline", 60.0)
        starts = range(0, len(texts), BATCH)
        parts = await asyncio.gather(
            *(
                self.runtime.send_batch(
                    "sender",
                    "receiver",
                    texts[i : i + BATCH],
                    request_ids=None if ids is None else ids[i : i + BATCH],
                    **question,
                )
                for i in starts
            )
        )
        return [outcome for part in parts for outcome in part]

    async def ready(self) -> None:
        """Returns when every agent answers again."""
        for agent in ("sender", "receiver"):
            await self.runtime.direct(agent, "are you there?", deadline=60.0)
        self.books.admitted.clear()
        self.books.ends.clear()


def wiring_of(setup: Setup) -> Deployment:
    slow = {"encode_ms": 6.0, "decode_ms": 6.0}
    sends, receives = (
        FakeModel.model_validate(slow | faults) for faults in (setup.sender, setup.receiver)
    )
    wire = {"fallback": setup.fallback, "when_down": setup.when_down}
    return two_agents(sends, receives, wire=wire, replicas=setup.replicas, max_batch=BATCH)


@contextlib.asynccontextmanager
async def rig(
    setup: Setup, rng: random.Random, *, run_folder: Path | None = None
) -> AsyncIterator[Rig]:
    """A running rig; everything is closed afterwards."""
    books = Books()
    with linked(setup.link, rng) as links:
        runtime = Runtime(
            wiring_of(setup),
            limits=setup.limits,
            timing=TIMING,
            journal=books,
            run_folder=run_folder,
            admission=setup.admission,
        )
        async with runtime:
            made = Rig(runtime, books, rng)
            made.link = links[0] if links else None
            yield made


class LinkableBroker(Broker):
    """A broker whose peers are told the address of a link to it, where ``linked`` says so."""

    def start(self) -> None:
        super().start()
        make = LINKING.get()
        if make is not None:
            self.endpoint = make(self.endpoint)


LINKING: ContextVar[Callable[[str], str] | None] = ContextVar("LINKING", default=None)
# For good: runtimes that run at the same time differ in what they want.
vars(lifecycle)["Broker"] = LinkableBroker


@contextlib.contextmanager
def linked(kind: str, rng: random.Random) -> Iterator[list[Any]]:
    """In this task, peers of a new runtime are told the address of a link to their broker."""
    links: list[Any] = []

    def make(endpoint: str) -> str:
        address = beside(endpoint, "link")
        messages = kind == "messages"
        links.append(
            MessageLink(endpoint, address, rng) if messages else ByteLink(endpoint, address)
        )
        return address

    before = LINKING.set(make if kind else None)
    try:
        yield links
    finally:
        LINKING.reset(before)
        for link in links:
            link.close()


async def answers_without_faults(texts: Sequence[str] = TEXTS) -> Answers:
    """What every row must be answered, from a run in which nothing is broken."""
    async with rig(Setup(), random.Random(0)) as plain:
        outcomes = await plain.send(texts)
    answers: Answers = {}
    for text, outcome in zip(texts, outcomes, strict=True):
        if not isinstance(outcome, Reply):
            raise outcome
        answers[text] = answer_of(outcome)
    return answers
