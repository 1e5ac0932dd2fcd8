"""Futures of outstanding requests, and the replies that results bring them."""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Protocol, TypeAlias

from agentwire.errors import NackCode, RemoteProtocolError, RequestError
from agentwire.runtime.ledger import Request
from agentwire.runtime.reply import Reply
from agentwire.runtime.request_errors import RETRY_AFTER_S
from agentwire.telemetry.metrics import RuntimeMetrics
from agentwire.wire.limits import SCORE_BYTES
from agentwire.wire.messages import Channel, Result, TaskSpec

Outcome: TypeAlias = Reply | RequestError
MAX_REPLIES: Final = 4096
RATE_WINDOW_S: Final = 5.0
_REQUEST_ID = attrgetter("request_id")


class EventLog(Protocol):
    """A destination of events, such as ``telemetry.journal.Journal``."""

    def write(self, event: str, **fields: Any) -> None: ...


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller that waits for several requests; woken once, when the last one ends."""

    future: asyncio.Future[None]
    left: int


@dataclass(eq=False, slots=True)
class Pending:
    """A request that callers wait for."""

    task: TaskSpec
    outcome: Outcome | None = None
    waiters: list[Waiter] = field(default_factory=list)
    on_piece: Callable[[int, str], None] | None = None


class CompletionRate:
    """The rate at which requests ended in the last seconds."""

    def __init__(self) -> None:
        self._completions: deque[tuple[float, int]] = deque()
        self._count = 0

    def record(self, requests: int) -> None:
        self._completions.append((time.monotonic(), requests))
        self._count += requests
        self._drop_old()

    def seconds_for(self, requests: int) -> float:
        """Time for this many completions, 0.05 to 30 s; 1 s if none happened recently."""
        self._drop_old()
        if not self._count:
            return RETRY_AFTER_S
        elapsed = max(0.1, time.monotonic() - self._completions[0][0])
        return min(30.0, max(0.05, requests * elapsed / self._count))

    def _drop_old(self) -> None:
        while self._completions and self._completions[0][0] < time.monotonic() - RATE_WINDOW_S:
            self._count -= self._completions.popleft()[1]


class PendingRequests:
    """Outstanding requests, and the replies of those that ended recently.

    ``journal`` receives an event when requests are admitted and when they finish.
    """

    def __init__(self, journal: EventLog | None, metrics: RuntimeMetrics | None = None) -> None:
        self._journal = journal
        self._metrics = metrics or RuntimeMetrics()
        self.rate = CompletionRate()
        self.outstanding: dict[bytes, Pending] = {}
        self.replies: OrderedDict[bytes, Reply] = OrderedDict()

    def add(self, requests: Sequence[Request], task: TaskSpec) -> None:
        """Registers the admitted requests of one call."""
        for request in requests:
            self.outstanding[request.request_id] = Pending(task)
        first = requests[0]
        self._write(
            "admitted",
            requests,
            wire=first.wire,
            task=task.name,
            channel=first.channel,
            trace_id=first.trace_id.hex(),
        )

    def complete(self, answered: Sequence[tuple[Request, Reply]]) -> None:
        """Ends requests with their replies."""
        requests: list[Request] = []
        for request, reply in answered:
            requests.append(request)
            self.replies[request.request_id] = reply
            self._metrics.record_reply(request.route, reply.reason, reply.stages, reply.latency_ms)
            self._end(request, reply)
        while len(self.replies) > MAX_REPLIES:
            self.replies.popitem(last=False)
        if answered:
            self.rate.record(len(answered))
            self._write("finished", requests, outcome="answered", channel=answered[0][1].channel)

    def fail(self, requests: Sequence[Request], error: RequestError) -> None:
        """Ends requests without an answer."""
        for request in requests:
            self._metrics.record_failure(request.route or request.wire, error.code.value)
            self._end(request, error)
        self._write("finished", requests, outcome=error.code.value, reason=error.message)

    async def wait(self, requests: Mapping[bytes, Pending]) -> None:
        """Waits until all have an outcome, or the caller is cancelled."""
        outstanding: list[Pending] = []
        for pending in requests.values():
            if pending.outcome is None:
                outstanding.append(pending)
        if not outstanding:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = Waiter(future, len(outstanding))
        for pending in outstanding:
            pending.waiters.append(waiter)
        try:
            await future
        finally:
            for pending in outstanding:
                pending.waiters.remove(waiter)

    def _end(self, request: Request, outcome: Outcome) -> None:
        pending = self.outstanding.pop(request.request_id)
        pending.outcome = outcome
        for waiter in pending.waiters:
            waiter.left -= 1
            if waiter.left == 0 and not waiter.future.done():
                waiter.future.set_result(None)

    def _write(self, event: str, requests: Sequence[Request], **fields: Any) -> None:
        if self._journal is not None and requests:
            ids = list(map(bytes.hex, map(_REQUEST_ID, requests)))
            try:
                self._journal.write(event, request_ids=ids, **fields)
            except Exception as error:  # no request depends on the journal
                self._metrics.faults.record("journal", error)


def replies_of(outcomes: Sequence[Outcome]) -> list[Reply]:
    """The replies of requests that were all answered. Raises the first outcome that is an error."""
    replies: list[Reply] = []
    for outcome in outcomes:
        if isinstance(outcome, RequestError):
            raise outcome
        replies.append(outcome)
    return replies


def parse_answers(result: Result, task: TaskSpec) -> list[dict[str, float]] | list[str]:
    """The scores by label, or the generated text, of each row; raises a RemoteProtocolError if the
    result does not match the task or its own rows.
    """
    if not task.labels:
        if len(result.texts) != len(result.rows):
            raise RemoteProtocolError(
                NackCode.MALFORMED,
                f"result has {len(result.texts)} texts for {len(result.rows)} rows",
            )
        return list(result.texts)
    if result.labels != len(task.labels):
        raise RemoteProtocolError(
            NackCode.MALFORMED,
            f"result has {result.labels} scores a row for {len(task.labels)} labels",
        )
    answers: list[dict[str, float]] = []
    for row in from_scores(result.scores, len(result.rows), result.labels):
        answers.append(dict(zip(task.labels, row, strict=True)))
    return answers


def build_reply(
    request: Request,
    result: Result,
    row: int,
    answer: dict[str, float] | str,
    arrival: float,
    token_bytes: int = 0,
) -> Reply:
    """The reply to one row of a result that arrived at ``arrival`` (monotonic seconds).

    ``token_bytes``: bytes of one soft token; 0 if unknown.
    """
    soft = result.channel is Channel.SOFT and token_bytes > 0
    read, written, *judged = (0, 0)
    if result.tokens:
        form = "<2If" if len(result.tokens) == 12 * len(result.rows) else "<2I"
        read, written, *judged = struct.unpack_from(
            form, result.tokens, struct.calcsize(form) * row
        )
    latency_ms = (arrival - request.admitted) * 1000
    stages = dict(result.stages)
    stages["wire"] = latency_ms - sum(stages.values())
    label = text = index = None
    scores: Mapping[str, float] = {}
    if isinstance(answer, str):
        text = answer
    else:
        scores = answer
        label = max(answer, key=answer.__getitem__)
        index = [*answer].index(label)
    reason, _, unread = result.reason.rpartition(":")
    return Reply(
        request_id=request.request_id.hex(),
        label=label,
        label_index=index,
        scores=scores,
        text=text,
        channel=result.channel,
        reason=reason if unread.isdecimal() else result.reason,
        stages=stages,
        latency_ms=latency_ms,
        payload_bytes=result.payload_bytes,
        prompt_tokens=read,
        completion_tokens=written,
        route=result.wire,
        unread=int(unread) if unread.isdecimal() else 0,
        soft_tokens=result.payload_bytes // token_bytes if soft else 0,
        confidence=judged[0] if judged else None,
    )


def from_scores(scores: bytes | memoryview, n: int, labels: int) -> list[tuple[float, ...]]:
    """The log-probabilities of a Result: n rows of L numbers.

    Plain Python numbers: for so few, numpy would be several times slower.

    Raises:
        RemoteProtocolError: (``malformed``) not n * L values, or one that is NaN or +inf, which a
            log-probability cannot be. -inf is allowed: the model rules that label out.
    """
    size = memoryview(scores).nbytes
    if n < 1 or labels < 1 or size != n * labels * SCORE_BYTES:
        raise RemoteProtocolError(
            NackCode.MALFORMED, f"{size} bytes are not {n} x {labels} float32 scores"
        )
    rows = list(struct.iter_unpack(f"<{labels}f", scores))
    for row in rows:
        for score in row:
            if not score < math.inf:  # also catches NaN
                raise RemoteProtocolError(NackCode.MALFORMED, "a score is NaN or +inf")
    return rows
