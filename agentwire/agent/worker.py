"""The agent's compute loop without process, socket or clock: messages in, messages out.

The rules:

* Every row that comes in leaves exactly once: as a row of Soft, Text, Result or Nack; or not at
  all, if its client cancelled it.
* Credit for a message is granted again when its last row is done.
* A row that comes again is not computed twice: its reply comes from the cache, or from the work
  that is already under way.
* Where the backend can (``Pipelined``), two batches are under way: the device works on one while
  the next is prepared and the last is sent. They end in the order in which they began.
* Nothing is computed for a wire whose last message still waits for credit, nor while the receiver
  has not answered the bridge's offer.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agentwire.agent.agreements import Agreements
from agentwire.agent.batching import Batcher, Item, Kind, Lane
from agentwire.agent.compute import (
    CachedReply,
    Compute,
    Done,
    Failed,
    Outcome,
    Ticket,
    Work,
    WorkKey,
)
from agentwire.agent.fallback import Hold, decide, knows_prompt
from agentwire.agent.kept import KeptKey, KeptPayloads
from agentwire.agent.outbox import Outbox
from agentwire.agent.replies import form_of, messages, row_of
from agentwire.agent.validation import Validation
from agentwire.errors import NackCode
from agentwire.model.backend import Backend, Job
from agentwire.spec.agent import AgentSpec
from agentwire.wire.credit import CreditWindow
from agentwire.wire.dedup import Dedup, Seen
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
    body_bytes,
    direct_wire,
)

log = logging.getLogger(__name__)

REPLY_BYTES: Final = 32 * 1024 * 1024
OVERLOADED_MS: Final = 200
WINDOW_BYTES: Final = 32 * 1024 * 1024  # several batches of 128 rows of 64 KiB
WINDOW_BATCHES: Final = 4
BRIEF_S: Final = 0.005
"""A batch that took less is not worth waking the IO thread for: that halves what an agent of brief
batches gets done (bench/stress.py load)."""
DEPTH: Final = 2
"""Batches under way: one that the device computes, and one that waits for it there."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A batch that the device has begun.

    Attributes:
        since: when it began, in monotonic seconds.
        queue_ms: what its youngest row had waited by then.
    """

    items: list[Item[Work]]
    task: TaskSpec
    begun: Job[Any]
    since: float
    queue_ms: float


class Worker:
    """One agent's work.

    Args:
        spec: the agent.
        backend: its model, loaded.
        bridges: wire -> bridge, for each wire on which this agent sends.
        send: hands a message to the bus.
        clock: monotonic seconds.
        poll: hands what arrived meanwhile to ``handle``; called between computing a batch and
            sending its replies, so that a cancellation is seen in time.
        on_busy: told when a batch starts (monotonic seconds) and when it is done (None); of
            several under way, about the oldest.
        on_long_batch: called before a batch is computed in the caller's thread, unless the last
            batch of its kind and size was short.
        agreements: those of another worker, which changes them; default: its own.
        reply_bytes: of the replies that are kept in case their requests come again.

    Attributes:
        agreements: which bridges are used and accepted.
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
        reply_bytes: int = REPLY_BYTES,
    ) -> None:
        self._spec = spec
        self.agreements = agreements or Agreements(backend.identity, bridges, spec.incoming)
        self._compute = Compute(backend, self.agreements, self._watch)
        self._clock = clock
        self._poll = poll
        self._on_busy = on_busy
        self._on_long_batch = on_long_batch
        self._running: deque[_Running] = deque()
        self._took: dict[tuple[Kind, int], float] = {}  # seconds of the last batch of its kind
        self._kept = KeptPayloads()
        self._intake = Validation(spec, backend, self.agreements, self._kept)
        # Wide enough for single rows to fill a batch while the next one waits.
        wires = [*(b.wire for b in spec.bridges), *spec.incoming, direct_wire(spec.name)]
        size = max(WINDOW_BATCHES, 2 * spec.max_batch)
        self._windows = {wire: CreditWindow(size, WINDOW_BYTES) for wire in wires}
        self._batcher: Batcher[Work] = Batcher(spec.max_batch, spec.max_wait_ms / 1000)
        self._outbox = Outbox(send)
        self._pending: dict[WorkKey, Item[Work]] = {}  # waiting or being computed
        self._dedup: Dedup[WorkKey, CachedReply] = Dedup(reply_bytes=reply_bytes)
        self.closing = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be computed or sent."""
        return not self._pending and not len(self._outbox)

    @property
    def batch_sizes(self) -> dict[str, dict[int, int]]:
        """Batches so far: kind -> rows -> how many."""
        sizes: dict[str, dict[int, int]] = {}
        for (kind, rows), count in sorted(self._batcher.taken.items(), key=lambda e: e[0][1]):
            sizes.setdefault(kind.name.lower(), {})[rows] = count
        return sizes

    def task(self, task_id: str) -> TaskSpec | None:
        """The task of this id, as far as it was defined here."""
        return self._intake.task(task_id)

    def start(self) -> None:
        """The first messages of an agent that is ready: its offers, and credit for its wires."""
        for offer in self.agreements.offers():
            self._outbox.send(offer)
        for wire, window in self._windows.items():
            grant = window.open()
            self._outbox.send(Credit(wire, grant.messages, grant.bytes))

    def next_event(self) -> float:
        """When ``run_once`` has something to do again, if nothing arrives; may be ``math.inf``.

        A batch under way counts once it ``is_done``.
        """
        if self.is_done():
            return -math.inf
        full = len(self._running) >= DEPTH
        return self._batcher.next_event((lambda lane: True) if full else self._held)

    # -- what arrives -----------------------------------------------------------------------

    def handle(self, message: Message, arrival: float) -> None:
        """Takes one message in; computes nothing.

        Raises:
            RemoteProtocolError: the bus sent more than it was granted.
        """
        match message:
            case Encode() | Soft() | Text():
                self._take_in(message, arrival)
            case Credit():
                self._outbox.grant(message)
            case Define(task):
                self._intake.define(task)
            case Offer():
                self._outbox.send(self.agreements.consider(message))
            case Accept():
                self.agreements.answered(message)
            case Nack(wire=wire, rows=()) if wire:
                self.agreements.answered(message)
            case Cancel(request_ids=ids, origin=origin):
                self._cancel(frozenset(ids), origin)
            case _:
                log.warning("a message that does not concern an agent: %s", message)

    def _take_in(self, message: Encode | Soft | Text, arrival: float) -> None:
        window = self._windows.get(message.wire)
        if window is not None:
            window.arrived(body_bytes(message))
        ticket, items, refusals = self._intake.read(message, arrival, closing=self.closing)
        for nack in refusals:
            self._outbox.send(nack)
            self._release(ticket, len(nack.rows))
        for item in items:
            self._add(item)

    def _add(self, item: Item[Work]) -> None:
        key = item.content.key
        known = self._pending.get(key)
        lookup = self._dedup.begin(key)
        if lookup.reply is not None:
            # Without stages: what was spent the first time shows as wire time.
            reply = lookup.reply
            for message in messages(form_of(item, reply), [(item, reply)], {}, self._clock()):
                self._outbox.send(message)
        elif lookup.seen is Seen.FULL:
            late = f"{self._spec.name} holds as many rows as it can"
            self._outbox.send(
                Nack(
                    NackCode.OVERLOADED,
                    late,
                    item.lane.wire,
                    (item.content.row,),
                    OVERLOADED_MS,
                    item.lane.origin,
                )
            )
        elif known is None or self._batcher.remove(known):
            # New, or a newer copy of a row that waits, which takes its place.
            self._pending[key] = item
            self._batcher.add(item)
            if known is not None:
                self._release(known.content.ticket, 1)
            return
        else:  # a copy of a row that is being computed
            known.content.cancelled = False
            known.solo = known.solo or item.solo
            known.deadline = item.deadline
        self._release(item.content.ticket, 1)

    def _cancel(self, ids: frozenset[bytes], origin: str) -> None:
        for item in self._batcher.cancel(ids, origin):
            self._finish(item)
            self._dedup.forget(item.content.key)
        for key, item in self._pending.items():
            if key.request_id in ids and key.origin == origin:
                item.content.cancelled = True

    # -- compute ----------------------------------------------------------------------------

    def run_once(self) -> bool:
        """Sends the replies of batches that are done, and begins or computes one that is due.

        Returns:
            Whether there was anything to do.
        """
        ended = self._end_done()
        now = self._clock()
        for item in self._batcher.expired(now):
            late = f"{self._spec.name} did not come to it in time"
            self._fail(Failed([item], NackCode.DEADLINE, late))
        if len(self._running) >= DEPTH:
            return ended
        batch = self._batcher.take(now, self._held)
        if not batch:
            return ended
        task = self._intake.task(batch[0].lane.task)
        if task is None:
            self._fail(Failed(batch, NackCode.UNKNOWN_TASK, "the task is no longer kept"))
            return True
        # Counted from the youngest row: what its companions waited longer shows as wire time.
        queue_ms = (now - max(item.content.ticket.arrival for item in batch)) * 1000
        if not self._running:
            self._on_busy(now)
        begun = self._compute.begin(batch, task)
        if begun is not None:
            self._running.append(_Running(batch, task, begun, now, queue_ms))
            self._end_done()
            return True
        if self._running:  # what was begun before ends before
            self._end_all()
            self._on_busy(self._clock())
        self._send_replies(self._compute_here(batch, task), queue_ms, None)
        return True

    @property
    def computing(self) -> bool:
        """Whether the device has batches that ``run_once`` has to end."""
        return bool(self._running)

    def expected_end(self) -> float:
        """When the only batch under way should be done, by the last one of its kind and size.

        ``math.inf``: there is none, or several, or nobody knows.
        """
        if len(self._running) != 1:
            return math.inf
        running = self._running[0]
        return running.since + self._took.get(_alike(running.items), math.inf)

    def is_done(self) -> bool:
        """Whether the device has done the oldest of them."""
        return bool(self._running) and self._running[0].begun.done()

    def _end_done(self) -> bool:
        """Ends the batches that the device has done, oldest first."""
        ended = False
        while self.is_done():
            self._end_oldest()
            ended = True
        return ended

    def _end_all(self) -> None:
        while self._running:
            self._end_oldest()

    def _end_oldest(self) -> None:
        running = self._running[0]
        if len(self._running) == 1:  # else it waited for another
            self._took[_alike(running.items)] = self._clock() - running.since
        try:
            outcomes = self._compute.run(running.items, running.task, running.begun)
            self._send_replies(outcomes, running.queue_ms, running.since)
        finally:
            self._running.popleft()
            self._on_busy(self._clock() if self._running else None)

    def _send_replies(self, outcomes: list[Outcome], queue_ms: float, since: float | None) -> None:
        """Takes in what came meanwhile, cancellations too, and sends a batch's replies.

        Args:
            since: when the device was given it; None: it was computed in this thread.
        """
        self._poll()
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                self._fail(outcome)
                continue
            waited = 0.0
            if since is not None:  # behind another batch on the device, or to be collected
                waited = (self._clock() - since) * 1000 - sum(outcome.stages.values())
            self._done(outcome, queue_ms + max(0.0, waited))

    def _compute_here(self, batch: list[Item[Work]], task: TaskSpec) -> list[Outcome]:
        """Computes a batch in this thread, which hears nothing meanwhile."""
        alike = _alike(batch)
        if self._took.get(alike, math.inf) >= BRIEF_S:
            self._on_long_batch()
        start = self._clock()
        try:
            return self._compute.run(batch, task, None)
        finally:
            self._took[alike] = self._clock() - start
            self._on_busy(None)

    def _watch(self, item: Item[Work], text: str) -> bool:
        """Sends what a row has grown by; called from within the model's generation."""
        work = item.content
        now = self._clock()
        self._on_busy(now)  # a long answer is progress, not a hang
        self._poll()
        task = self._intake.task(item.lane.task)
        if text and task is not None and task.decoding.stream and not work.cancelled:
            lane = item.lane
            piece = Piece(
                lane.wire, lane.task, (row_of(item, now),), (text,), (work.streamed,), lane.origin
            )
            self._outbox.send(piece)
            work.streamed += len(text.encode())
        return not work.cancelled and item.deadline > now

    def _held(self, lane: Lane) -> bool:
        if lane.kind is not Kind.ENCODE:
            return False
        if self._outbox.is_blocked(lane.wire):
            return True
        task = self._intake.task(lane.task)
        if lane.channel != Channel.SOFT or task is None:
            return False
        bridge = self.agreements.bridge(lane.wire)
        keeps = lane.mode == Mode.KEEP
        decision = decide(
            self.agreements.state(lane.wire),
            prompt_known=bridge is not None and (keeps or knows_prompt(bridge, task)),
            generates=not task.labels,
            policy="text",
        )
        return isinstance(decision, Hold)

    # -- what leaves ------------------------------------------------------------------------

    def _done(self, done: Done, queue_ms: float) -> None:
        pairs = list(zip(done.items, done.replies, strict=True))
        for item, reply in pairs:
            self._dedup.finish(item.content.key, reply, reply.size)
            held = item.lane.kind is Kind.SOFT and reply.payload is not None
            if held or item.lane.mode == Mode.KEEP:
                self._keep(item, reply)
        stages = {"queue": queue_ms, **done.stages}
        wanted = [pair for pair in pairs if not pair[0].content.cancelled]
        if wanted:
            for message in messages(done.form, wanted, stages, self._clock()):
                self._outbox.send(message)
        for item in done.items:
            self._finish(item)

    def _keep(self, item: Item[Work], reply: CachedReply) -> None:
        payload = None
        if reply.payload is not None:
            payload = np.frombuffer(reply.payload, dtype=np.float16).reshape(reply.shape)
        lane = item.lane
        self._kept.put(
            KeptKey(lane.origin, item.request_id),
            self._clock(),
            text=item.content.text,
            payload=payload,
            bridge=reply.bridge,
            reason=reply.reason,
        )

    def _fail(self, failed: Failed) -> None:
        now = self._clock()
        lane = failed.items[0].lane
        rows = [row_of(item, now) for item in failed.items if not item.content.cancelled]
        if rows:
            nack = Nack(failed.code, failed.reason, lane.wire, tuple(rows), origin=lane.origin)
            self._outbox.send(nack)
        for item in failed.items:
            self._finish(item)
            self._dedup.forget(item.content.key)

    def _finish(self, item: Item[Work]) -> None:
        self._pending.pop(item.content.key, None)
        self._release(item.content.ticket, 1)

    def _release(self, ticket: Ticket, rows: int) -> None:
        ticket.remaining -= rows
        window = self._windows.get(ticket.wire)
        if ticket.remaining == 0 and window is not None:
            grant = window.consumed(ticket.size)
            if grant is not None:
                self._outbox.send(Credit(ticket.wire, grant.messages, grant.bytes))


def _alike(items: list[Item[Work]]) -> tuple[Kind, int]:
    """What batches that should take the same time have in common."""
    return items[0].lane.kind, len(items)
