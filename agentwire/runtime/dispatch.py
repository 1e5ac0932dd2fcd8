"""Texts -> requests -> the messages that carry them, as many at once as may be."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar

from agentwire.runtime.ledger import Dispatch, Request
from agentwire.wire.messages import DIRECT_PREFIX, Cancel, Encode, Row, Text

T = TypeVar("T")
MAX_MS: Final = 2**31 - 1
MAX_CANCELS: Final = 256  # request ids in one Cancel


def message_of(dispatch: Dispatch, now: float) -> Encode | Text:
    """The message of a dispatch; what is left of each deadline is counted from ``now``."""
    head = dispatch.head
    rows = tuple(
        Row(
            r.request_id,
            None if r.deadline == math.inf else min(MAX_MS, max(0, int((r.deadline - now) * 1000))),
            trace_id=r.trace_id,
            size=r.size,
        )
        for r in dispatch.requests
    )
    texts = tuple(r.text for r in dispatch.requests)
    if dispatch.wire.startswith(DIRECT_PREFIX):
        return Text(dispatch.wire, head.task, rows, texts, head.reason, solo=dispatch.solo)
    return Encode(
        dispatch.wire,
        head.task,
        head.channel,
        head.fallback,
        rows,
        texts,
        head.reason,
        dispatch.solo,
        mode=head.mode,
    )


def cancels_of(requests: Iterable[Request]) -> Iterator[Cancel]:
    """Messages that cancel those requests of which copies may travel."""
    wires: dict[str, list[bytes]] = {}
    for request in requests:
        if request.attempts:
            wires.setdefault(request.route, []).append(request.request_id)
    for wire, ids in wires.items():
        for start in range(0, len(ids), MAX_CANCELS):
            yield Cancel(wire, tuple(ids[start : start + MAX_CANCELS]))


def batches_of(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts in lists of ``size``; the last may be shorter."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def in_order(calls: Iterable[Coroutine[Any, Any, T]], most: int) -> AsyncGenerator[T]:
    """The results of calls, in order, of which at most so many run at once; closed early, or where
    one fails, it cancels those that run.
    """
    tasks: deque[asyncio.Task[T]] = deque()
    try:
        for call in calls:
            tasks.append(asyncio.create_task(call))
            while len(tasks) >= most:
                yield await tasks[0]
                tasks.popleft()
        while tasks:
            yield await tasks[0]
            tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
