"""Who waits for which request, and what became of it: futures, and the latest replies."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from agentwire.errors import RequestError
from agentwire.runtime.ledger import Request
from agentwire.runtime.reply import Reply
from agentwire.runtime.request_errors import RETRY_AFTER_S
from agentwire.telemetry.live import LiveStats
from agentwire.wire.messages import TaskSpec

Outcome: TypeAlias = Reply | RequestError
MAX_REPLIES: Final = 4096


class EventLog(Protocol):
    """Where events are written (``telemetry.journal.Journal``)."""

    def write(self, event: str, **fields: Any) -> None: ...


@dataclass(eq=False, slots=True)
class Waiting:
    """A caller that waits for several requests; woken once, when the last has ended."""

    future: asyncio.Future[None]
    left: int

    def one_ended(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.future.done():
            self.future.set_result(None)


@dataclass(eq=False, slots=True)
class Pending:
    """A request that callers wait for."""

    task: TaskSpec
    task_id: str  # of the task: a digest, too dear to take for every row
    outcome: Outcome | None = None
    waiting: list[Waiting] = field(default_factory=list)
    on_piece: Callable[[int, str], None] | None = None

    def ended(self) -> Outcome:
        """What became of it, once it has ended."""
        assert self.outcome is not None
        return self.outcome


class Pace:
    """How fast requests end, over the last seconds.

    Args:
        clock: monotonic seconds.
        window_s: what counts as lately.
    """

    def __init__(self, clock: Callable[[], float], window_s: float = 5.0) -> None:
        self._clock = clock
        self._window = window_s
        self._ends: deque[tuple[float, int]] = deque()
        self._count = 0

    def ended(self, requests: int) -> None:
        """So many have ended now."""
        self._ends.append((self._clock(), requests))
        self._count += requests
        self._forget()

    def seconds_for(self, requests: int) -> float:
        """How long so many take to end at this pace; 0.05 .. 30, and 1 where none ended lately."""
        self._forget()
        if not self._count:
            return RETRY_AFTER_S
        elapsed = max(0.1, self._clock() - self._ends[0][0])
        return min(30.0, max(0.05, requests * elapsed / self._count))

    def _forget(self) -> None:
        while self._ends and self._ends[0][0] < self._clock() - self._window:
            self._count -= self._ends.popleft()[1]


class Outcomes:
    """The outcome of every request: to come, or (for the latest replies) known.

    Args:
        journal: told which requests were admitted and which are finished.
        stats: totals for whoever looks.
    """

    def __init__(self, journal: EventLog | None, stats: LiveStats | None = None) -> None:
        self._journal = journal
        self._stats = stats or LiveStats()
        self.pace = Pace(time.monotonic)
        self._pending: dict[bytes, Pending] = {}
        self._replies: OrderedDict[bytes, Reply] = OrderedDict()

    def reply(self, request_id: bytes) -> Reply | None:
        """The reply that a finished request got, if that is not too long ago."""
        return self._replies.get(request_id)

    def pending(self, request_id: bytes) -> Pending:
        return self._pending[request_id]

    def asked(self, request_id: bytes, task_id: str) -> TaskSpec | None:
        """The task of an outstanding request; None if it asked another one, or has ended."""
        pending = self._pending.get(request_id)
        return pending.task if pending is not None and pending.task_id == task_id else None

    def listener(self, request_id: bytes, task_id: str) -> Callable[[int, str], None] | None:
        """Who wants to be told how the answer to a request grows; None: nobody."""
        pending = self._pending.get(request_id)
        return pending.on_piece if pending is not None and pending.task_id == task_id else None

    def expect(self, requests: Sequence[Request], task: TaskSpec) -> None:
        """These requests, alike in all but id and text, have been admitted."""
        for request in requests:
            self._pending[request.request_id] = Pending(task, request.task)
        head = requests[0]
        self._write(
            "admitted",
            requests,
            wire=head.wire,
            task=task.name,
            channel=head.channel,
            trace_id=head.trace_id.hex(),
        )

    def answer(self, answered: Sequence[tuple[Request, Reply]]) -> None:
        """Ends requests with their replies."""
        for request, reply in answered:
            self._replies[request.request_id] = reply
            self._stats.answered(request.route, reply.reason, reply.stages, reply.latency_ms)
            self._end(request, reply)
        while len(self._replies) > MAX_REPLIES:
            self._replies.popitem(last=False)
        if answered:
            self.pace.ended(len(answered))
            requests = [request for request, _ in answered]
            self._write("finished", requests, outcome="answered", channel=answered[0][1].channel)

    def fail(self, requests: Sequence[Request], error: RequestError) -> None:
        """Ends requests without an answer."""
        for request in requests:
            self._stats.failed(request.route or request.wire, error.code.value)
            self._end(request, error)
        self._write("finished", requests, outcome=error.code.value, reason=error.message)

    async def wait(self, waits: Mapping[bytes, Pending]) -> None:
        """Waits until all have an outcome, or the caller is cancelled."""
        outstanding = [pending for pending in waits.values() if pending.outcome is None]
        if not outstanding:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = Waiting(future, len(outstanding))
        for pending in outstanding:
            pending.waiting.append(waiting)
        try:
            await future
        finally:
            for pending in outstanding:
                pending.waiting.remove(waiting)

    def _end(self, request: Request, outcome: Outcome) -> None:
        pending = self._pending.pop(request.request_id)
        pending.outcome = outcome
        for waiting in pending.waiting:
            waiting.one_ended()

    def _write(self, event: str, requests: Sequence[Request], **fields: Any) -> None:
        if self._journal is not None and requests:
            ids = [request.request_id.hex() for request in requests]
            self._journal.write(event, request_ids=ids, **fields)


def answered(outcomes: Sequence[Outcome]) -> list[Reply]:
    """The replies of requests that all have one.

    Raises:
        RequestError: the first outcome that is none.
    """
    replies: list[Reply] = []
    for outcome in outcomes:
        if isinstance(outcome, RequestError):
            raise outcome
        replies.append(outcome)
    return replies
