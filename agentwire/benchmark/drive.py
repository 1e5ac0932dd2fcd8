"""Sends messages and reads the clock: one at a time for latency, several in flight for throughput.

The stopwatch is the caller's own: it starts before a call and stops when the answer is in the
caller's hands. What the replies say about their stages is kept beside it, so that the two can be
held against each other.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Send = Callable[[Sequence[str]], Awaitable["Answer"]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about the answer to one message.

    Attributes:
        stages: milliseconds by stage, of the row that took longest.
        payload_bytes: of one row on the bus.
    """

    stages: Mapping[str, float]
    payload_bytes: int = 0


@dataclass(slots=True)
class Burst:
    """What one cell showed in one round.

    Attributes:
        latencies_ms: of each message, from call to answer.
        stages_ms: of each message.
        rows: answered in ``seconds`` while the pipeline was full: what a rate is made of.
        payload_bytes: of one row.
    """

    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: list[Mapping[str, float]] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0
    payload_bytes: int = 0

    @property
    def rows_per_s(self) -> float | None:
        """None where no rate was measured."""
        return self.rows / self.seconds if self.seconds > 0 else None

    def add(self, answer: Answer, latency_s: float) -> None:
        self.latencies_ms.append(latency_s * 1000)
        self.stages_ms.append(answer.stages)
        self.payload_bytes = answer.payload_bytes


def batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Messages of ``size`` texts without end, taken from ``texts`` in turn."""
    source = itertools.cycle(texts)
    while True:
        yield list(itertools.islice(source, size))


async def warm(send: Send, messages: Iterator[Sequence[str]], count: int) -> None:
    """Sends what is not counted."""
    for batch in itertools.islice(messages, count):
        await send(batch)


async def one_by_one(
    send: Send, messages: Iterator[Sequence[str]], *, most: int, least: int, seconds: float
) -> Burst:
    """Latency: the next message leaves when the last one is answered.

    Ends after ``most`` messages, or when ``seconds`` are over and ``least`` messages answered.
    """
    burst = Burst()
    begin = time.perf_counter()
    for number, batch in enumerate(messages, 1):
        start = time.perf_counter()
        answer = await send(batch)
        now = time.perf_counter()
        burst.add(answer, now - start)
        if number >= most or (number >= least and now - begin >= seconds):
            break
    return burst


async def sustained(
    send: Send, messages: Iterator[Sequence[str]], *, in_flight: int, seconds: float
) -> Burst:
    """Throughput: ``in_flight`` messages are outstanding for about ``seconds``.

    The first ``in_flight`` answers fill the pipeline; the rate is made of all that come after them,
    among them those that were outstanding when the time was up. ``in_flight`` is a multiple of the
    number of agents that work side by side, so that neither end of the count falls between them.
    """
    burst = Burst()
    filled = last = 0.0
    answered = 0

    async def lane() -> None:
        nonlocal filled, last, answered
        while not filled or time.perf_counter() - filled < seconds:
            batch = next(messages)
            start = time.perf_counter()
            answer = await send(batch)
            last = time.perf_counter()
            burst.add(answer, last - start)
            answered += 1
            if answered > in_flight:
                burst.rows += len(batch)
            elif answered == in_flight:
                filled = last

    tasks = [asyncio.create_task(lane()) for _ in range(in_flight)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    burst.seconds = last - filled
    return burst
