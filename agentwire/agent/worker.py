"""The compute loop of an agent without process, socket or clock: messages in, messages out.

* Every row leaves exactly once, as a row of Soft, Text, Result or Nack, unless it is cancelled.
* Credit for a message is returned when its last row is done.
* A resent row is not computed twice: its reply comes from the cache, or from the work under way.
* With a ``Pipelined`` backend two batches run: the device computes one while the next is prepared
  and the last is sent. They end in the order in which they began.
* Nothing is computed for a wire whose last message waits for credit, or whose receiver has not
  answered the bridge's offer.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import numpy as np

from agentwire.agent.batching import Batcher, BatchGroup, Inbound, Kind, WorkItem, WorkKey
from agentwire.agent.compute import Compute
from agentwire.agent.kept import KeptKey, KeptPayloads
from agentwire.agent.replies import (
    BatchResults,
    ComputedRows,
    Dedup,
    FailedRows,
    RowReply,
    Seen,
    messages,
    row_of,
    type_of,
)
from agentwire.agent.validation import Agreements, Validator
from agentwire.errors import NackCode
from agentwire.model.backend import Backend, Job
from agentwire.spec.agent import AgentSpec
from agentwire.wire.credit import CreditGate, CreditWindow, body_bytes
from agentwire.wire.messages import (
    Accept,
    BridgeIdentity,
    Cancel,
    Channel,
    Credit,
    Define,
    Encode,
    Message,
    Mode,
    Nack,
    Offer,
    Piece,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)

log = logging.getLogger(__name__)

REPLY_BYTES: Final = 32 * 1024 * 1024
OVERLOADED_MS: Final = 200
WINDOW_BYTES: Final = 32 * 1024 * 1024  # several batches of 128 rows of 64 KiB
WINDOW_BATCHES: Final = 4
SHORT_BATCH_S: Final = 0.005
"""A shorter batch is not worth waking the IO thread for. Doing so halves the throughput of agents
with short batches (bench/stress.py load)."""
MAX_RUNNING: Final = 2
"""Batches on the device: the one it computes, and the next one."""

_ARRIVAL = attrgetter("message.arrival")


class Outbox:
    """Holds Soft and Text messages until their wire has credit. Sends everything else at once.

    It stays small because the worker computes nothing for a wire in ``waiting``: one with a message
    that waits for credit.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._gate = CreditGate()
        self.waiting: dict[str, deque[Soft | Text]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.waiting.values())

    def send(self, message: Message) -> None:
        """Sends or queues a message. The rows of a Text must carry their sizes."""
        if isinstance(message, Soft | Text):
            wire = message.wire
            if wire in self.waiting or not self._gate.take(wire, body_bytes(message)):
                self.waiting.setdefault(wire, deque()).append(message)
                return
        self._send(message)

    def grant(self, credit: Credit) -> None:
        """Adds credit of one wire.

        Raises:
            RemoteProtocolError: more credit than any agent needs.
        """
        self._gate.add(credit.wire, credit.messages, credit.bytes)
        queue = self.waiting.get(credit.wire)
        while queue and self._gate.take(credit.wire, body_bytes(queue[0])):
            self._send(queue.popleft())
        if not queue:
            self.waiting.pop(credit.wire, None)


@dataclass(frozen=True, slots=True)
class _RunningBatch:
    """A batch on the device.

    Attributes:
        since: when it began, in monotonic seconds.
        queue_ms: how long its youngest row had waited by then.
    """

    items: list[WorkItem]
    task: TaskSpec
    job: Job[Any]
    since: float
    queue_ms: float

    @property
    def shape(self) -> tuple[Kind, int]:
        """Batches of the same kind and size should take the same time."""
        return self.items[0].group.kind, len(self.items)


class Worker:
    """One agent's work.

    Args:
        spec: the agent.
        backend: its loaded model.
        bridges: wire -> bridge, for each wire on which this agent sends.
        send: sends a message over the bus.
        clock: monotonic seconds.
        poll: passes new messages to ``handle``. Called after a batch is computed and before its
            replies are sent, so that cancellations take effect.
        on_busy: called with the start of the oldest running batch (monotonic seconds), or None when
            none is running.
        on_long_batch: called before a batch is computed in the caller's thread, unless the last
            batch of its kind and size was short.
        agreements: shared with another worker that updates them; default: its own.
        readers: as for ``Agreements``.
        reply_bytes: size of the reply cache.

    Attributes:
        running: batches on the device, oldest first.
    """

    def __init__(
        self,
        spec: AgentSpec,
        backend: Backend,
        bridges: Mapping[str, BridgeIdentity | None],
        send: Callable[[Message], None],
        clock: Callable[[], float],
        *,
        poll: Callable[[], None] = lambda: None,
        on_busy: Callable[[float | None], None] = lambda since: None,
        on_long_batch: Callable[[], None] = lambda: None,
        agreements: Agreements | None = None,
        readers: Mapping[str, BridgeIdentity] | None = None,
        reply_bytes: int = REPLY_BYTES,
    ) -> None:
        self._spec = spec
        self.agreements = agreements or Agreements(
            backend.identity, bridges, spec.incoming, readers
        )
        long_text = {out.wire: out.long_text for out in spec.bridges if out.long_text}
        sizes = {out.wire: out.soft_tokens for out in spec.bridges if out.soft_tokens}
        self._compute = Compute(backend, self.agreements, self._on_generated, long_text, sizes)
        self._clock = clock
        self._poll = poll
        self._on_busy = on_busy
        self._on_long_batch = on_long_batch
        self.running: deque[_RunningBatch] = deque()
        self._durations: dict[tuple[Kind, int], float] = {}  # of the last batch of its shape
        self._kept = KeptPayloads()
        self._validator = Validator(spec, backend, self.agreements, self._kept)
        # Wide enough for single rows to fill a batch while the next one waits.
        wires = [*(b.wire for b in spec.bridges), *spec.incoming, direct_wire(spec.name)]
        size = max(WINDOW_BATCHES, 2 * spec.max_batch)
        self._windows = {wire: CreditWindow(size, WINDOW_BYTES) for wire in wires}
        self._batcher = Batcher(spec.max_batch, spec.max_wait_ms / 1000)
        self._outbox = Outbox(send)
        self._pending: dict[WorkKey, WorkItem] = {}  # waiting or being computed
        self._dedup: Dedup[WorkKey, RowReply] = Dedup(reply_bytes=reply_bytes)
        self.closing = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be computed or sent."""
        return not self._pending and not len(self._outbox)

    @property
    def batch_sizes(self) -> dict[str, dict[int, int]]:
        """Number of batches so far: kind -> rows -> count."""
        sizes: dict[str, dict[int, int]] = {}
        for (kind, rows), count in sorted(self._batcher.taken.items(), key=lambda e: e[0][1]):
            sizes.setdefault(kind.name.lower(), {})[rows] = count
        return sizes

    def task(self, task_id: str) -> TaskSpec | None:
        """The task with this id, if it is defined here."""
        return self._validator.tasks.get(task_id)

    def start(self) -> None:
        """Sends the agent's offers and the first credit of its wires."""
        for offer in self.agreements.offers():
            self._outbox.send(offer)
        for wire, window in self._windows.items():
            grant = window.open()
            self._outbox.send(Credit(wire, grant.messages, grant.bytes))

    def next_event(self) -> float:
        """When to call ``run_once`` again if nothing arrives; may be ``math.inf``.

        A batch on the device counts once it ``is_done``.
        """
        if self.running:
            if self.is_done():
                return -math.inf
            if len(self.running) >= MAX_RUNNING:
                return self._batcher.next_event(lambda group: True)
        return self._batcher.next_event(self._is_blocked)

    # -- incoming ---------------------------------------------------------------------------

    def handle(self, message: Message, arrival: float) -> None:
        """Handles one message; computes nothing.

        Raises:
            RemoteProtocolError: the bus sent more than it was granted.
        """
        match message:
            case Encode() | Soft() | Text():
                self._receive(message, arrival)
            case Credit():
                self._outbox.grant(message)
            case Define(task):
                self._validator.define(task)
            case Offer():
                self._outbox.send(self.agreements.answer_offer(message))
            case Accept():
                self.agreements.handle_answer(message)
            case Nack(wire=wire, rows=()) if wire:
                self.agreements.handle_answer(message)
            case Cancel(request_ids=ids, origin=origin):
                self._cancel(frozenset(ids), origin)
            case _:
                log.warning("unexpected message: %s", message)

    def _receive(self, message: Encode | Soft | Text, arrival: float) -> None:
        inbound, items, nacks = self._validator.validate(message, arrival, closing=self.closing)
        window = self._windows.get(message.wire)
        if window is not None:
            window.arrived(inbound.size)
        for nack in nacks:
            self._outbox.send(nack)
            self._release(inbound, len(nack.rows))
        for item in items:
            self._add(item)

    def _add(self, item: WorkItem) -> None:
        known = self._pending.get(item.key)
        lookup = self._dedup.begin(item.key)
        if lookup.reply is not None:
            # Without stages: the time spent on the first request counts as wire time here.
            reply = lookup.reply
            for message in messages(type_of(item, reply), [(item, reply)], {}, self._clock()):
                self._outbox.send(message)
        elif lookup.seen is Seen.FULL:
            code, reason = NackCode.OVERLOADED, f"{self._spec.name} holds as many rows as it can"
            wire, origin = item.group.wire, item.group.origin
            self._outbox.send(Nack(code, reason, wire, (item.row,), OVERLOADED_MS, origin))
        elif known is None or self._batcher.remove(known):
            # New, or a newer copy that replaces a waiting row.
            self._pending[item.key] = item
            self._batcher.add(item)
            if known is not None:
                self._release(known.message, 1)
            return
        else:  # a copy of a row that is being computed
            known.cancelled = False
            known.solo = known.solo or item.solo
            known.deadline = item.deadline
        self._release(item.message, 1)

    def _cancel(self, ids: frozenset[bytes], origin: str) -> None:
        for item in self._batcher.cancel(ids, origin):
            self._finish(item)
            self._dedup.forget(item.key)
        for item in self._pending.values():
            if item.row.request_id in ids and item.group.origin == origin:
                item.cancelled = True

    # -- compute ----------------------------------------------------------------------------

    def run_once(self) -> bool:
        """Sends the replies of finished batches, and starts or computes a batch that is due.

        Returns:
            Whether there was anything to do.
        """
        collected = False
        while self.running and self.is_done():
            self._collect_oldest()
            collected = True
        now = self._clock()
        for item in self._batcher.expired(now):
            reason = f"{self._spec.name} did not compute it in time"
            self._send_failed(FailedRows([item], NackCode.DEADLINE, reason))
        if len(self.running) >= MAX_RUNNING:
            return collected
        batch = self._batcher.take(now, self._is_blocked)
        if not batch:
            return collected
        task = self._validator.tasks.get(batch[0].group.task)
        if task is None:
            reason = "the task is no longer defined"
            self._send_failed(FailedRows(batch, NackCode.UNKNOWN_TASK, reason))
            return True
        # By the youngest row: the longer wait of the others counts as wire time.
        queue_ms = (now - max(map(_ARRIVAL, batch))) * 1000
        if not self.running:
            self._on_busy(now)
        job = self._compute.begin(batch, task)
        if job is not None:
            self.running.append(_RunningBatch(batch, task, job, now, queue_ms))
            while self.running and self.is_done():
                self._collect_oldest()
            return True
        if self.running:  # batches end in the order in which they began
            while self.running:
                self._collect_oldest()
            self._on_busy(self._clock())
        self._send_results(self._compute_in_thread(batch, task), queue_ms, None)
        return True

    def expected_end(self) -> float:
        """When the only batch on the device should be done, by the last batch of its kind and size.

        ``math.inf`` if there is none, if there are several, or if it is the first of its shape.
        """
        if len(self.running) != 1:
            return math.inf
        running = self.running[0]
        return running.since + self._durations.get(running.shape, math.inf)

    def is_done(self) -> bool:
        """Whether the oldest batch in ``running``, which must not be empty, is done."""
        return self.running[0].job.done()

    def _collect_oldest(self) -> None:
        running = self.running[0]
        if len(self.running) == 1:  # otherwise it waited for another batch
            self._durations[running.shape] = self._clock() - running.since
        try:
            results = self._compute.run(running.items, running.task, running.job)
            self._send_results(results, running.queue_ms, running.since)
        finally:
            self.running.popleft()
            self._on_busy(self._clock() if self.running else None)

    def _send_results(self, results: BatchResults, queue_ms: float, since: float | None) -> None:
        """Handles messages that arrived meanwhile, then sends the replies of a batch.

        Args:
            since: when the device got the batch; None: it was computed in this thread.
        """
        self._poll()
        for rows in results:
            if isinstance(rows, FailedRows):
                self._send_failed(rows)
                continue
            waited = 0.0
            if since is not None:  # for another batch on the device, or to be collected
                waited = (self._clock() - since) * 1000 - sum(rows.stages.values())
            self._send_computed(rows, queue_ms + max(0.0, waited))

    def _compute_in_thread(self, batch: list[WorkItem], task: TaskSpec) -> BatchResults:
        """Computes a batch in this thread, which reads no messages meanwhile."""
        shape = (batch[0].group.kind, len(batch))
        if self._durations.get(shape, math.inf) >= SHORT_BATCH_S:
            self._on_long_batch()
        start = self._clock()
        try:
            return self._compute.run(batch, task, None)
        finally:
            self._durations[shape] = self._clock() - start
            self._on_busy(None)

    def _on_generated(self, item: WorkItem, text: str) -> bool:
        """Streams new text of an answer; called by the model while it generates."""
        now = self._clock()
        self._on_busy(now)  # a long answer makes progress
        self._poll()
        group = item.group
        task = self._validator.tasks.get(group.task)
        if text and task is not None and task.decoding.stream and not item.cancelled:
            rows = (row_of(item, now),)
            self._outbox.send(
                Piece(group.wire, group.task, rows, (text,), (item.streamed,), group.origin)
            )
            item.streamed += len(text.encode())
        return not item.cancelled and item.deadline > now

    def _is_blocked(self, group: BatchGroup) -> bool:
        if group.kind is not Kind.ENCODE:
            return False
        if group.wire in self._outbox.waiting:
            return True
        if group.channel != Channel.SOFT or group.wire in self.agreements.accepted:
            return False
        task = self._validator.tasks.get(group.task)
        # Without an obstacle, the offer is pending.
        return task is not None and (self.agreements.obstacle(group.wire, task, group.mode) is None)

    # -- outgoing ---------------------------------------------------------------------------

    def _send_computed(self, rows: ComputedRows, queue_ms: float) -> None:
        wanted: list[tuple[WorkItem, RowReply]] = []
        for item, reply in zip(rows.items, rows.replies, strict=True):
            self._dedup.finish(item.key, reply, reply.size)
            held = item.group.kind is Kind.SOFT and reply.payload is not None
            if held or item.group.mode == Mode.KEEP:
                self._keep(item, reply)
            if not item.cancelled:
                wanted.append((item, reply))
        if wanted:
            stages = {"queue": queue_ms, **rows.stages}
            for message in messages(rows.type, wanted, stages, self._clock()):
                self._outbox.send(message)
        for item in rows.items:
            self._finish(item)

    def _keep(self, item: WorkItem, reply: RowReply) -> None:
        payload = None
        if reply.payload is not None:
            payload = np.frombuffer(reply.payload, dtype=np.float16).reshape(reply.shape)
        self._kept.put(
            KeptKey(item.group.origin, item.row.request_id),
            self._clock(),
            text=item.text,
            payload=payload,
            bridge=reply.bridge,
            reason=reply.reason,
            owner=f"{item.group.origin} {item.group.task}",
        )

    def _send_failed(self, failed: FailedRows) -> None:
        now = self._clock()
        group = failed.items[0].group
        rows = [row_of(item, now) for item in failed.items if not item.cancelled]
        if rows:
            self._outbox.send(
                Nack(failed.code, failed.reason, group.wire, tuple(rows), origin=group.origin)
            )
        for item in failed.items:
            self._finish(item)
            self._dedup.forget(item.key)

    def _finish(self, item: WorkItem) -> None:
        self._pending.pop(item.key, None)
        self._release(item.message, 1)

    def _release(self, inbound: Inbound, rows: int) -> None:
        inbound.remaining -= rows
        window = self._windows.get(inbound.wire)
        if inbound.remaining == 0 and window is not None:
            grant = window.consumed(inbound.size)
            if grant is not None:
                self._outbox.send(Credit(inbound.wire, grant.messages, grant.bytes))
