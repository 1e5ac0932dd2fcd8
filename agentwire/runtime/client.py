"""The client of the bus, in an asyncio loop: each request gets exactly one outcome.

The ledger decides what to send when. The client connects it to the endpoint, to credit, to timers
and to the callers' futures. Everything but the endpoint's callbacks runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, Literal

from agentwire.bus.endpoint import Endpoint
from agentwire.errors import (
    BusClosed,
    InputError,
    LocalProtocolError,
    NackCode,
    RemoteProtocolError,
    RequestError,
    ScenarioError,
)
from agentwire.runtime.ledger import (
    Admission,
    Ledger,
    Request,
    cancels_for,
    split_into_messages,
)
from agentwire.runtime.pending import (
    EventLog,
    Outcome,
    Pending,
    PendingRequests,
    build_reply,
    parse_answers,
)
from agentwire.runtime.reply import Reply
from agentwire.runtime.request_errors import (
    AfterNack,
    after_nack,
    bad_text_error,
    dead_letter_error,
    deadline_error,
    down_error,
    long_question_error,
    long_text_error,
    overloaded_error,
)
from agentwire.spec.routes import Routes
from agentwire.telemetry.metrics import RuntimeMetrics
from agentwire.wire.codec import encode
from agentwire.wire.credit import CreditGate, body_bytes
from agentwire.wire.limits import LIMITS
from agentwire.wire.messages import (
    Channel,
    Credit,
    Define,
    Envelope,
    Message,
    Mode,
    Nack,
    Piece,
    Result,
    TaskSpec,
)

log = logging.getLogger(__name__)

MAX_RECONNECTS: Final = 8
"""Connections that may be lost in a row, without a message in between."""
RECONNECT_S: Final = 0.05
"""Pause before the first attempt to reconnect; it doubles with each attempt."""
MAX_TASKS: Final = 512
"""Tasks assumed to be known to the broker; it keeps more than these."""
RETRY_S: Final = 0.2
UNSURE: Final = "unsure"  # why a text follows an uncertain answer from soft tokens
MAX_REDEFINED: Final = 3
"""Attempts of a request whose task the bus has dropped, before it pauses between them."""


class LoopReader:
    """Polls an endpoint in the event loop's thread, so that messages need no thread switch.

    If the loop or the transport does not support this, the endpoint's own IO thread keeps polling.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> None:
        self._loop = loop
        self._endpoint = endpoint
        # Duplicates: the endpoint may close its descriptors at any time, and the system then
        # reuses their numbers.
        self._files: list[int] = []
        try:
            for file in endpoint.descriptors:
                self._files.append(os.dup(file))
                loop.add_reader(self._files[-1], self._poll)
        except (NotImplementedError, OSError):
            self.close()

    def _poll(self) -> None:
        if self._files and self._endpoint.poll(0.0):
            # There is more, but ZeroMQ's descriptors signal changes only.
            self._loop.call_soon(self._poll)

    def close(self) -> None:
        """Leaves polling to the endpoint's IO thread. Safe to call twice."""
        files, self._files = self._files, []
        for file in files:
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(file)
            os.close(file)


class Client:
    """Submits requests over the bus and waits for their outcomes.

    If the connection breaks, the client reconnects as a new incarnation and sends again what was in
    flight. Agents recognize requests by their ids and compute nothing twice.

    Args:
        connect: makes an endpoint from (on_message, on_lost), each time as a new incarnation.
        wires, admission, fallback_wires, routes: as for ``Ledger``.
        journal, metrics: as for ``PendingRequests``.
        on_dead_letter: called with each dead letter, its task, the agent, and the cause of death.
        token_bytes: wire -> bytes of one soft token, where that is known.
        fallback_below: wire -> confidence below which an answer is asked again with the text.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Message, float], None], Callable[[str], None]], Endpoint],
        wires: Mapping[str, Sequence[str]],
        journal: EventLog | None = None,
        *,
        admission: Admission | None = None,
        fallback_wires: Mapping[str, str] | None = None,
        routes: Mapping[str, Routes] | None = None,
        on_dead_letter: Callable[[Request, TaskSpec, str, str], None] = lambda *letter: None,
        metrics: RuntimeMetrics | None = None,
        token_bytes: Mapping[str, int] | None = None,
        fallback_below: Mapping[str, float] | None = None,
    ) -> None:
        self._fallback_below = fallback_below or {}
        self._token_bytes = token_bytes or {}
        self._on_dead_letter = on_dead_letter
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._thread = threading.get_ident()
        self._reader: LoopReader | None = None
        self._connection = 0  # number of the current connection
        self._endpoint = self._new_endpoint()
        self._lost_in_a_row = 0
        self._reconnect_timer: asyncio.TimerHandle | None = None
        self._connected = True  # False from a loss until the next connection brings a message
        self._ledger = Ledger(wires, admission, fallback_wires, routes)
        self._credit = CreditGate()
        self._pending = PendingRequests(journal, metrics)
        self._defined: OrderedDict[str, TaskSpec] = OrderedDict()
        self._idle = asyncio.Event()
        self._draining = False
        self._send_timer: asyncio.TimerHandle | None = None
        self._closed = ""

    def start(self) -> None:
        """Connects; returns at once."""
        if self._reader is not None:
            self._reader.close()
        self._endpoint.start()
        self._reader = LoopReader(self._loop, self._endpoint)

    @property
    def outstanding(self) -> int:
        """Number of admitted requests that have not ended."""
        return len(self._ledger.requests)

    @property
    def credits(self) -> dict[str, int]:
        """Messages that may be sent now, by route (a wire without replicas is its own route)."""
        return {route: self._credit.left(route).messages for route in self._ledger.routes}

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, and waits until the outstanding ones end or the time is up."""
        self._draining = True
        self._check_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self, reason: str) -> None:
        """Ends every outstanding request with CLOSING, and disconnects."""
        self._fail_all(reason)
        if self._reader is not None:
            self._reader.close()
        await asyncio.to_thread(self._endpoint.close, reason, 2.0)

    def fail(self, reason: str) -> None:
        """The bus is lost for good: every outstanding request ends."""
        self._fail_all(f"the bus is lost ({reason})")

    # -- agents -----------------------------------------------------------------------------

    def agent_ready(self, agent: str) -> None:
        """An incarnation of the agent is ready to work."""
        self._ledger.ready(agent)
        self._send_waiting()

    def agent_died(self, agent: str, reason: str, *, crashed: bool = True) -> None:
        """The agent's incarnation is gone: what was in flight is sent again or dead-lettered."""
        requeued = self._ledger.died(agent, now=self._loop.time(), crashed=crashed)
        # The agent at the other end of the wire may still have copies in its queue.
        self._cancel(requeued.again)
        for request in requeued.dead_letters:
            task = self._pending.outstanding[request.request_id].task
            self._on_dead_letter(request, task, agent, reason)
            error = dead_letter_error(request.request_id, agent, reason)
            self._pending.fail([request], error)
        self._send_waiting()

    def agent_down(self, agent: str, reason: str) -> None:
        """The agent is down: its requests end, and new ones are refused until it is ready."""
        self._pending.fail(self._ledger.down(agent, reason), down_error(agent, reason))
        self._send_waiting()

    # -- requests ---------------------------------------------------------------------------

    async def submit(
        self,
        wire: str,
        task: TaskSpec,
        texts: Sequence[str],
        *,
        channel: Channel,
        fallback: Literal["text", "error"],
        deadline_s: float,
        request_ids: Sequence[bytes] | None = None,
        mode: Mode = Mode.FORWARD,
        via: Sequence[str] | None = None,
        questions: Sequence[str] | None = None,
        on_piece: Callable[[int, str], None] | None = None,
    ) -> list[Outcome]:
        """One outcome a text, in order. The texts share messages as far as limits allow.

        What is no text ends as ``malformed``, and one above the wire's limit as ``too_large``.

        The id of an outstanding request waits for its outcome; the id of a recently answered one
        returns the same reply. A cancelled caller's requests are cancelled, unless another caller
        waits for them.

        Args:
            via: for each text the only process, or the only route, that it may take ("" for any).
            questions: of each text, if the task has ``{question}``.
            on_piece: called with the pieces of the only text's answer: (offset in bytes, piece).

        Raises:
            RequestError: nothing was admitted: an agent is down, or too much is outstanding.
            BusClosed: the client is closed.
            InputError: a request id is in use for another request.
        """
        if not texts:
            return []
        if self._closed:
            raise BusClosed(f"The bus is closed: {self._closed}.")
        if self._draining:
            raise BusClosed("The bus is closing and accepts no new requests.")
        if request_ids is None and self._ledger.is_full(len(texts)):
            # New ids need no look-up. Refusing before anything is built keeps an overloaded client
            # free to process answers.
            raise self._with_retry_time(overloaded_error(self.outstanding))
        ids = request_ids or list(map(os.urandom, repeat(16, len(texts))))
        now, trace_id = self._loop.time(), os.urandom(16)
        task_id = task.task_id
        known: dict[bytes, Outcome] = {}
        new: dict[bytes, Request] = {}
        nothing = [""] * len(texts)
        rows = zip(ids, texts, via or nothing, questions or nothing, strict=True)
        for request_id, text, process, question in rows:
            reply = self._pending.replies.get(request_id)
            if reply is not None:
                known[request_id] = reply
            old = self._ledger.requests.get(request_id) or new.get(request_id)
            if old is not None:
                self._check_same(old, wire, task_id, text, question)
            elif request_id not in known:
                try:
                    request = Request(
                        request_id,
                        wire,
                        task_id,
                        text,
                        channel,
                        fallback,
                        now,
                        now + deadline_s,
                        mode=mode,
                        trace_id=trace_id,
                        via=process,
                        question=question,
                    )
                except (AttributeError, UnicodeEncodeError):  # no str, or not one of characters
                    known[request_id] = bad_text_error(text, ids.index(request_id))
                    continue
                if request.size > LIMITS.text_row_bytes:
                    known[request_id] = long_text_error(request.size, ids.index(request_id))
                    continue
                if len(question.encode()) > LIMITS.question_bytes:
                    known[request_id] = long_question_error(question, ids.index(request_id))
                    continue
                new[request_id] = request
        timer = self._admit(list(new.values()), task, deadline_s)
        waiting: dict[bytes, Pending] = {}
        for request_id in ids:
            pending = self._pending.outstanding.get(request_id)
            if pending is not None:
                waiting[request_id] = pending
        if on_piece is not None and waiting:
            waiting[ids[0]].on_piece = on_piece
        if new:
            self._send_waiting()
        try:
            await self._pending.wait(waiting)
        except BaseException:
            self._abandon([i for i, p in waiting.items() if not p.waiters and p.outcome is None])
            raise
        if timer is not None:
            timer.cancel()
        outcomes: list[Outcome] = []
        for request_id in ids:
            outcome = known.get(request_id) or waiting[request_id].outcome
            assert outcome is not None  # ``wait`` returned
            outcomes.append(outcome)
        return outcomes

    def _check_same(self, old: Request, wire: str, task_id: str, text: str, question: str) -> None:
        """Raises an InputError unless a request with an outstanding id repeats that request."""
        same_wire = old.wire in (wire, self._ledger.fallback_wire(wire))
        same = (old.text, old.task, old.question) == (text, task_id, question)
        if not (same_wire and same):
            raise InputError(
                f"Request id {old.request_id.hex()} is in use for another request.",
                hint="Give each request its own id.",
            )

    def _admit(
        self, requests: list[Request], task: TaskSpec, deadline_s: float
    ) -> asyncio.TimerHandle | None:
        if not requests:
            return None
        self._define(task)
        try:
            self._ledger.admit(list(split_into_messages(requests)))
        except RequestError as error:
            raise self._with_retry_time(error) from None
        self._pending.add(requests, task)
        if deadline_s == math.inf:
            return None
        return self._loop.call_later(deadline_s, self._expire, requests)

    def _with_retry_time(self, error: RequestError) -> RequestError:
        """Suggests a retry for the time when a tenth of the outstanding requests have ended."""
        if error.code is NackCode.OVERLOADED:
            error.retry_after_s = self._pending.rate.seconds_for(self.outstanding // 10)
        return error

    def _abandon(self, request_ids: Sequence[bytes]) -> None:
        """Cancels requests that no caller waits for any more."""
        requests = [r for i in request_ids if (r := self._ledger.settle(i)) is not None]
        if requests:
            self._cancel(requests)
            error = RequestError(NackCode.CANCELLED, "Cancelled by the caller.")
            self._pending.fail(requests, error)
            self._send_waiting()

    def _define(self, task: TaskSpec) -> None:
        task_id = task.task_id
        if task_id in self._defined:
            self._defined.move_to_end(task_id)
            return
        try:
            encode(Define(task), Envelope(bytes(16), 0, 0))
        except LocalProtocolError as error:
            raise ScenarioError(error.message, hint="Shorten the prompt or the labels.") from None
        self._send(Define(task))
        self._defined[task_id] = task
        if len(self._defined) > MAX_TASKS:
            self._defined.popitem(last=False)

    def _define_again(self, task: TaskSpec) -> None:
        self._defined.pop(task.task_id, None)
        self._define(task)

    def _expire(self, requests: Sequence[Request]) -> None:
        """Ends those of the requests that are still outstanding at their deadline."""
        late = [r for r in requests if self._ledger.settle(r.request_id) is not None]
        self._cancel(late)
        for request in late:
            sent = request.attempts > 0 or not self._ledger.is_ready(request.wire)
            error = deadline_error(request.request_id, request.wire, sent=sent)
            self._pending.fail([request], error)
        self._send_waiting()

    # -- sending ----------------------------------------------------------------------------

    def _send_waiting(self) -> None:
        """Sends what may be sent now, and schedules itself for the end of the next pause."""
        now = self._loop.time()
        while self._connected and not self._closed:
            batch = self._ledger.next(now, self._credit.allows)
            if batch is None:
                break
            message = batch.to_message(now)
            self._credit.take(batch.route, body_bytes(message))
            self._send(message)
        if self._send_timer is not None:
            self._send_timer.cancel()
        end = self._ledger.next_event(now)  # of a pause
        self._send_timer = None if end == math.inf else self._loop.call_at(end, self._send_waiting)
        if self._draining:
            self._check_idle()

    def _check_idle(self) -> None:
        """While draining: notes when nothing is outstanding."""
        if not self._ledger.requests:
            self._idle.set()

    def _send(self, message: Message) -> None:
        if not self._connected:
            return  # tasks are defined again after connecting; requests wait for new credit
        try:
            self._endpoint.send(message)
        except BusClosed as error:
            self._on_lost(self._connection, error.message)

    def _cancel(self, requests: Iterable[Request]) -> None:
        for cancel in cancels_for(requests):
            self._send(cancel)

    # -- receiving --------------------------------------------------------------------------

    def _on_message(self, connection: int, message: Message, arrival: float) -> None:
        if connection == self._connection and self._reconnect_timer is None:
            self._lost_in_a_row = 0
            if not self._connected:
                self._connected = True
                for task in self._defined.values():
                    self._send(Define(task))
        elif isinstance(message, Credit):
            return  # a lost connection's credit is void, but its answers are still good
        match message:
            case Result():
                self._on_result(message, arrival)
            case Piece():
                self._on_pieces(message)
            case Nack(rows=rows) if rows:
                if message.wire and not message.origin:  # the broker has not charged it
                    with contextlib.suppress(RemoteProtocolError):
                        self._credit.add(message.wire, 1, sum(row.size for row in rows))
                self._on_nack(message)
            case Nack():
                log.warning("refused: %s %s %s", message.code, message.wire, message.reason)
            case Credit(wire, messages, size):
                with contextlib.suppress(RemoteProtocolError):
                    self._credit.add(wire, messages, size)
            case _:
                log.warning("unexpected message at a client: %s", message)
        self._send_waiting()

    def _on_pieces(self, pieces: Piece) -> None:
        for row, offset, text in zip(pieces.rows, pieces.offsets, pieces.texts, strict=True):
            pending = self._pending.outstanding.get(row.request_id)
            if pending is not None and pending.task.task_id == pieces.task and pending.on_piece:
                pending.on_piece(offset, text)

    def _on_result(self, result: Result, arrival: float) -> None:
        task: TaskSpec | None = None
        expected: list[int] = []
        for i, row in enumerate(result.rows):
            pending = self._pending.outstanding.get(row.request_id)
            if pending is not None and pending.task.task_id == result.task:
                task = pending.task
                expected.append(i)
        if task is None:
            return  # every row is a duplicate
        try:
            answers = parse_answers(result, task)
        except RemoteProtocolError as error:
            self._on_nack(Nack(error.code, error.message, result.wire, result.rows))
            return
        answered: list[tuple[Request, Reply]] = []
        unsure: list[Request] = []
        for i in expected:
            request = self._ledger.requests.get(result.rows[i].request_id)
            if request is not None:
                size = self._token_bytes.get(request.wire, 0)
                reply = build_reply(request, result, i, answers[i], arrival, size)
                if self._is_unsure(request, reply):
                    unsure.append(request)
                else:
                    self._ledger.settle(request.request_id)
                    answered.append((request, reply))
        self._pending.complete(answered)
        self._ledger.retry(unsure, now=self._loop.time(), as_text=UNSURE)

    def _is_unsure(self, request: Request, reply: Reply) -> bool:
        """Whether an answer from soft tokens is to be replaced by one from the text."""
        below = self._fallback_below.get(request.wire, -math.inf)
        if reply.confidence is None or reply.confidence >= below or request.fallback == "error":
            return False
        streamed = self._pending.outstanding[request.request_id].on_piece is not None
        return reply.channel is Channel.SOFT and not streamed

    def _on_nack(self, nack: Nack) -> None:
        rows: dict[AfterNack, list[Request]] = {action: [] for action in AfterNack}
        for row in nack.rows:
            request = self._ledger.requests.get(row.request_id)
            if request is not None and request.in_flight:  # otherwise it is sent again anyway
                action = after_nack(nack.code, channel=request.channel, policy=request.fallback)
                rows[action].append(request)
        now = self._loop.time()
        pause = nack.retry_after_ms / 1000 or RETRY_S
        if nack.code is NackCode.UNKNOWN_TASK:
            for request in rows[AfterNack.LATER]:
                self._define_again(self._pending.outstanding[request.request_id].task)
                if request.attempts < MAX_REDEFINED:
                    pause = 0.0
        self._ledger.retry(rows[AfterNack.LATER], now=now, after=pause)
        self._ledger.retry(rows[AfterNack.AS_TEXT], now=now, as_text=nack.code.value)
        failed = [r for r in rows[AfterNack.FAIL] if self._ledger.settle(r.request_id)]
        error = RequestError(nack.code, f"{nack.wire}: {nack.reason}")
        self._pending.fail(failed, error)

    # -- connection -------------------------------------------------------------------------

    def _new_endpoint(self) -> Endpoint:
        self._connection += 1
        on_message = functools.partial(self._on_message, self._connection)
        on_lost = functools.partial(self._on_lost, self._connection)
        return self._connect(self._in_loop(on_message), self._in_loop(on_lost))

    def _in_loop(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Wraps a callback so that any thread may call it; it runs in the loop."""

        def forward(*args: Any) -> None:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(callback, *args)
                return
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(callback, *args)

        return forward

    def _on_lost(self, connection: int, reason: str) -> None:
        if connection != self._connection or self._closed or self._reconnect_timer is not None:
            return
        if self._endpoint.final or self._lost_in_a_row >= MAX_RECONNECTS:
            self.fail(reason)
            return
        log.warning("lost the connection to the bus (%s); reconnecting", reason)
        self._connected = False
        self._credit.clear()  # the broker granted it to the incarnation that is gone
        pause = RECONNECT_S * 2**self._lost_in_a_row
        self._lost_in_a_row += 1
        self._reconnect_timer = self._loop.call_later(pause, self._reconnect)

    def _reconnect(self) -> None:
        self._reconnect_timer = None
        if self._closed:
            return
        try:
            self._endpoint = self._new_endpoint()
            self.start()
        except Exception as error:  # no file descriptors, no threads: the next attempt may succeed
            self._on_lost(self._connection, f"cannot connect: {error}")
            return
        in_flight = [r for r in self._ledger.outstanding() if r.in_flight]
        self._ledger.retry(in_flight, now=self._loop.time())
        self._send_waiting()

    def _fail_all(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = reason
        outstanding = self._ledger.outstanding()
        self._cancel(outstanding)
        for request in outstanding:
            self._ledger.settle(request.request_id)
        error = RequestError(NackCode.CLOSING, f"The request was not answered: {reason}.")
        self._pending.fail(outstanding, error)
        if self._draining:
            self._check_idle()
        for timer in (self._send_timer, self._reconnect_timer):
            if timer is not None:
                timer.cancel()
