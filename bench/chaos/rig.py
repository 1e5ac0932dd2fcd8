"""Runtimes of two fake agents to inject faults into, and counts of what became of their rows.

Processes and sockets are real. Only the models are fake, so the correct answer of a row is known
and takes milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
from agentwire.bus.transport import IN_PROCESS, Frames
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
    """What must be equal in two runs: the label and every score, bit for bit."""
    return reply.label, tuple(reply.scores.items())


class MemoryJournal:
    """Records which requests were admitted and how often each has ended.

    Attributes:
        full: whether every write fails, as on a full disk.
    """

    def __init__(self) -> None:
        self.full = False
        self.admitted: set[str] = set()
        self.ends: Counter[str] = Counter()

    def write(self, event: str, **fields: Any) -> None:
        if event == "admitted":
            self.admitted.update(fields["request_ids"])
        elif event == "finished":
            self.ends.update(fields["request_ids"])
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class Tally:
    """What became of the requests of one fault.

    Attributes:
        lost: requests that were admitted and have no outcome.
        duplicated: requests with more than one outcome.
        wrong: rows with another answer than without faults, or with an error that this fault does
            not excuse.
        errors: excused errors by code.
        notes: counts that are specific to the fault.
        problems: the first few failures, as text.
    """

    rounds: int = 0
    requests: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)

    def count(
        self,
        journal: MemoryJournal,
        texts: Sequence[str],
        outcomes: Sequence[Outcome | None],
        expected: Answers,
        excused: frozenset[NackCode] = frozenset(),
    ) -> None:
        """Counts one round: an outcome for each text, or None if the call returned none."""
        self.requests += len(texts)
        for text, outcome in zip(texts, outcomes, strict=True):
            if outcome is None:
                self.lost += 1
                self.add_problem(f"{text!r}: no outcome")
            elif isinstance(outcome, RequestError):
                if outcome.code in excused:
                    self.errors[outcome.code.value] += 1
                else:
                    self.wrong += 1
                    self.add_problem(f"{text!r}: {outcome}")
            elif answer_of(outcome) != expected[text]:
                self.wrong += 1
                self.add_problem(f"{text!r}: {answer_of(outcome)} is not {expected[text]}")
        unfinished = journal.admitted - journal.ends.keys()
        self.lost += len(unfinished)
        twice = [request_id for request_id, times in journal.ends.items() if times > 1]
        self.duplicated += len(twice)
        for request_id in [*unfinished, *twice]:
            self.add_problem(f"request {request_id} ended {journal.ends[request_id]} times")
        journal.admitted.clear()
        journal.ends.clear()

    def add_problem(self, text: str) -> None:
        if len(self.problems) < 10:
            self.problems.append(text)


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
    link: str = ""  # "messages" or "bytes": every peer connects through a proxy


class Rig:
    """A running runtime, its journal, and the proxy that its peers connect through."""

    def __init__(self, runtime: Runtime, journal: MemoryJournal, rng: random.Random) -> None:
        self.runtime = runtime
        self.journal = journal
        self.rng = rng
        self.link: Any = None  # a MessageLink or a ByteLink

    @property
    def logs(self) -> Path:
        """The folder of the agents' logs."""
        return self.runtime._lifecycle._bus_folder / "logs"

    def pid(self, agent: str) -> int:
        return self.runtime.agents[agent].pid

    async def replaced(self, process: str, pid: int) -> None:
        """Returns when an incarnation after the one with this pid is ready."""
        for _ in range(3_000):
            if self.pid(process) != pid:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{process} was not restarted")

    def signal(self, agent: str, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it died from the last round's signal
            os.kill(self.pid(agent), number)

    async def send(
        self, texts: Sequence[str] = TEXTS, *, ids: Sequence[str] | None = None, **options: Any
    ) -> list[Outcome]:
        """Sends all texts in concurrent batches; one outcome each."""
        options.setdefault("deadline", 60.0)
        starts = range(0, len(texts), BATCH)
        parts = await asyncio.gather(
            *(
                self.runtime.send_batch(
                    "sender",
                    "receiver",
                    texts[i : i + BATCH],
                    request_ids=None if ids is None else ids[i : i + BATCH],
                    **options,
                )
                for i in starts
            )
        )
        return [outcome for part in parts for outcome in part]

    async def ready(self) -> None:
        """Returns when every agent answers again."""
        for agent in ("sender", "receiver"):
            await self.runtime.direct(agent, "are you there?", deadline=60.0)
        self.journal.admitted.clear()
        self.journal.ends.clear()


def deployment_of(setup: Setup) -> Deployment:
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
    """A running rig, closed afterwards."""
    journal = MemoryJournal()
    with linked(setup.link, rng) as links:
        runtime = Runtime(
            deployment_of(setup),
            limits=setup.limits,
            timing=TIMING,
            journal=journal,
            run_folder=run_folder,
            admission=setup.admission,
        )
        async with runtime:
            made = Rig(runtime, journal, rng)
            made.link = links[0] if links else None
            yield made


class LinkableBroker(Broker):
    """A broker whose peers connect through a proxy inside ``linked``."""

    def start(self) -> None:
        super().start()
        make = LINKING.get()
        if make is not None:
            self.endpoint = make(self.endpoint)
            receive = self._core.receive

            def receive_in_process(peer: bytes, frames: Frames, key: str) -> None:
                receive(peer, frames, key or IN_PROCESS)

            # Behind a link the client looks like any other process, which may not take its name.
            vars(self._core)["receive"] = receive_in_process


LINKING: ContextVar[Callable[[str], str] | None] = ContextVar("LINKING", default=None)
# Never undone: concurrent runtimes differ in ``LINKING``, which is a context variable.
vars(lifecycle)["Broker"] = LinkableBroker


@contextlib.contextmanager
def linked(kind: str, rng: random.Random) -> Iterator[list[Any]]:
    """In this task, the peers of a new runtime connect through a proxy to their broker."""
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
    """The correct answer of every row, from a run without faults."""
    async with rig(Setup(), random.Random(0)) as plain:
        outcomes = await plain.send(texts)
    answers: Answers = {}
    for text, outcome in zip(texts, outcomes, strict=True):
        if not isinstance(outcome, Reply):
            raise outcome
        answers[text] = answer_of(outcome)
    return answers
