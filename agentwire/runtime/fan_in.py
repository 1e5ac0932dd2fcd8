"""Fan-in: several senders, one receiver that reads the soft tokens of all of them together.

Each sender's payload goes to the receiver and is held there (a task that asks nothing); then the
receiver is asked about what it holds, in the declared order. It does so only for bridges that were
trained together (``agent.joint``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.runtime.call_options import (
    KEEP,
    CallOptions,
    WireOptions,
    check_deadline,
    names_of,
    processes_for,
)
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import KeptPayload, Reply
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import Channel, Mode, TaskSpec, direct_wire

Row = Sequence[str | KeptPayload]
"""For each sender a text, or what it keeps."""
READS: Final = 3
"""How often the senders read, where the receiver dies before it was asked about what it held."""


class Ask(Protocol):
    """``Runtime._ask``."""

    def __call__(
        self,
        wire: str,
        texts: Sequence[str],
        channel: Channel,
        fallback: Any,
        task: TaskSpec,
        question: CallOptions,
        *,
        mode: Mode = Mode.FORWARD,
        via: Sequence[str] | None = None,
    ) -> Awaitable[list[Outcome]]: ...


@dataclass(frozen=True, slots=True)
class FanIn:
    """Asks a receiver about rows of several texts, one for each sender; or of what a sender keeps.

    Args:
        ask: sends requests.
        wiring: of the runtime.
        parts: the wires from the senders, in the order in which they are read.
        task: what is asked.
    """

    ask: Ask
    deployment: Deployment
    parts: Sequence[WireSpec]
    task: TaskSpec

    async def batch(self, rows: Sequence[Row], question: WireOptions) -> list[Outcome]:
        """One outcome a row, in order.

        Raises:
            ScenarioError: a row has not one text for each sender; or of one sender some rows have
                texts and others what it keeps.
            BusClosed: the runtime is closed.
        """
        for row in rows:
            if len(row) != len(self.parts):
                raise ScenarioError(
                    f"{len(row)} texts for {len(self.parts)} senders.",
                    hint=f"Give one for each of {', '.join(p.sender for p in self.parts)}.",
                )
        loop = asyncio.get_running_loop()
        end = loop.time() + check_deadline(question.get("deadline"), self.deployment.deadline_s)
        outcomes: dict[int, Outcome] = {}
        for _ in range(READS):
            left = [i for i in range(len(rows)) if not _is_final(outcomes.get(i))]
            if not left:
                break
            outcomes |= await self._once({i: rows[i] for i in left}, end)
        return [outcomes[i] for i in range(len(rows))]

    async def _once(self, rows: Mapping[int, Row], end: float) -> dict[int, Outcome]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        held = await self._hold(rows, end)
        outcomes: dict[int, Outcome] = {}
        ready: dict[int, list[Reply]] = {}
        for i, parts in held.items():
            error = next((note for note in parts if isinstance(note, RequestError)), None)
            if error is not None:
                outcomes[i] = error
            else:
                ready[i] = [note for note in parts if isinstance(note, Reply)]
        if ready:
            answers = await self._asked(
                direct_wire(self.parts[0].receiver),
                [" ".join(note.request_id for note in notes) for notes in ready.values()],
                replace(self.task, form="kept"),
                end,
                via=[self._end_of(notes[0], 1) for notes in ready.values()],
            )
            ms = (loop.time() - begun) * 1000
            for (i, notes), answer in zip(ready.items(), answers, strict=True):
                outcomes[i] = answer
                if isinstance(answer, Reply):
                    outcomes[i] = self._together(notes, answer, ms)
        return outcomes

    async def _hold(self, rows: Mapping[int, Row], end: float) -> dict[int, list[Outcome]]:
        """Lets every sender read, and one process of the receiver hold what they made."""

        async def one(place: int, to: Sequence[str]) -> list[Outcome]:
            part, texts = self.parts[place], [row[place] for row in rows.values()]
            names, mode = names_of(part.sender, part.receiver, texts)
            via = [
                self._way(part.name, *ends) for ends in zip(processes_for(texts), to, strict=True)
            ]
            return await self._asked(part.name, names, KEEP, end, mode=mode, via=via)

        anywhere = [""] * len(rows)
        processes = self.deployment.processes_of(self.parts[0].receiver)
        others = range(1, len(self.parts))
        if len(processes) == 1:
            parts = await asyncio.gather(*(one(p, anywhere) for p in range(len(self.parts))))
        else:  # where the first one's went, the others' must go
            first = await one(0, anywhere)
            to = [self._end_of(o, 1) if isinstance(o, Reply) else "" for o in first]
            parts = [first, *await asyncio.gather(*(one(place, to) for place in others))]
        return {i: list(notes) for i, *notes in zip(rows, *parts, strict=True)}

    def _way(self, wire: str, sender: str, receiver: str) -> str:
        """How a row may go, from and to these processes ("": any)."""
        if not (sender and receiver):
            return sender or receiver
        routes = self.deployment.routes[wire].items()
        return next(route for route, ends in routes if ends == (sender, receiver))

    async def _asked(
        self,
        wire: str,
        texts: Sequence[str],
        task: TaskSpec,
        end: float,
        *,
        mode: Mode = Mode.FORWARD,
        via: Sequence[str],
    ) -> list[Outcome]:
        """As ``ask``, but what is not admitted is every row's outcome."""
        left = max(1e-3, end - asyncio.get_running_loop().time())
        question = CallOptions(deadline=left)
        try:
            return await self.ask(
                wire, texts, Channel.SOFT, "error", task, question, mode=mode, via=via
            )
        except RequestError as error:
            return [error] * len(texts)

    def _end_of(self, note: Reply, end: int) -> str:
        """The process that a note's payload came from (0) or went to (1)."""
        wire = next(p.name for p in self.parts if note.route in self.deployment.routes[p.name])
        return self.deployment.routes[wire][note.route][end]

    def _together(self, notes: Sequence[Reply], answer: Reply, ms: float) -> Reply:
        """The answer, with what all of it took: its senders worked side by side."""
        slowest = max(notes, key=lambda note: note.latency_ms)
        stages = {k: v for k, v in slowest.stages.items() if k != "wire"}
        for stage, spent in answer.stages.items():
            if stage != "wire":
                stages[stage] = stages.get(stage, 0.0) + spent
        stages["wire"] = ms - sum(stages.values())
        senders = "+".join(self._end_of(note, 0) for note in notes)
        return replace(
            answer,
            stages=stages,
            latency_ms=ms,
            payload_bytes=sum(note.payload_bytes for note in notes),
            route=f"{senders}->{self._end_of(notes[0], 1)}",
        )


def _is_final(outcome: Outcome | None) -> bool:
    """What expired died with the receiver: it can be made again."""
    expired = isinstance(outcome, RequestError) and outcome.code is NackCode.EXPIRED
    return outcome is not None and not expired
