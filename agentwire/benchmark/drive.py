"""Sends messages and reads the clock: one at a time for latency, several in flight for throughput.

Latency is measured by the caller, from call to answer. The stages that replies report are kept
beside it, so that both can be compared.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Send = Callable[[Sequence[str]], Awaitable["MessageStats"]]


@dataclass(frozen=True, slots=True)
class MessageStats:
    """Milliseconds by stage of a message's slowest row, and bytes of one row on the bus."""

    stages: Mapping[str, float]
    payload_bytes: int = 0


@dataclass(slots=True)
class Burst:
    """One measurement in one round."""

    latencies_ms: list[float] = field(default_factory=list)  # of each message, like the stages
    stages_ms: list[Mapping[str, float]] = field(default_factory=list)
    rows: int = 0  # answered in ``seconds`` while the pipeline was full
    seconds: float = 0.0
    payload_bytes: int = 0  # of one row

    @property
    def rows_per_s(self) -> float | None:
        return self.rows / self.seconds if self.seconds > 0 else None

    def add(self, stats: MessageStats, latency_s: float) -> None:
        self.latencies_ms.append(latency_s * 1000)
        self.stages_ms.append(stats.stages)
        self.payload_bytes = stats.payload_bytes


def batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Endless messages of ``size`` texts, taken from ``texts`` in turn."""
    source = itertools.cycle(texts)
    while True:
        yield list(itertools.islice(source, size))


async def warm(send: Send, messages: Iterator[Sequence[str]], count: int) -> None:
    """Sends messages that are not counted."""
    for batch in itertools.islice(messages, count):
        await send(batch)


async def one_by_one(
    send: Send, messages: Iterator[Sequence[str]], *, most: int, least: int, seconds: float
) -> Burst:
    """Latency: sends the next message when the last one is answered.

    Ends after ``most`` messages, or after ``seconds`` if ``least`` messages are answered.
    """
    burst = Burst()
    begin = time.perf_counter()
    for number, batch in enumerate(messages, 1):
        start = time.perf_counter()
        stats = await send(batch)
        now = time.perf_counter()
        burst.add(stats, now - start)
        if number >= most or (number >= least and now - begin >= seconds):
            break
    return burst


async def sustained(
    send: Send, messages: Iterator[Sequence[str]], *, in_flight: int, seconds: float
) -> Burst:
    """Throughput: keeps ``in_flight`` messages outstanding for about ``seconds``.

    The first ``in_flight`` answers fill the pipeline and are not counted. ``in_flight`` must be a
    multiple of the number of replicas that work side by side.
    """
    burst = Burst()
    filled = last = 0.0
    answered = 0

    async def sender() -> None:
        nonlocal filled, last, answered
        while not filled or time.perf_counter() - filled < seconds:
            batch = next(messages)
            start = time.perf_counter()
            stats = await send(batch)
            last = time.perf_counter()
            burst.add(stats, last - start)
            answered += 1
            if answered > in_flight:
                burst.rows += len(batch)
            elif answered == in_flight:
                filled = last

    tasks = [asyncio.create_task(sender()) for _ in range(in_flight)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    burst.seconds = last - filled
    return burst
