"""The client of a bus, in an asyncio loop: requests in, exactly one outcome each out.

What to send when is the ledger's matter; this joins it to the endpoint, to credit, to timers and
to the futures that callers wait for. Everything but the endpoint's callbacks runs in the loop's
thread.
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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from agentwire.agent.fallback import AfterNack, after_nack
from agentwire.errors import (
    BusClosed,
    InputError,
    LocalProtocolError,
    NackCode,
    RemoteProtocolError,
    RequestError,
    ScenarioError,
)
from agentwire.runtime.dispatch import cancels_of, message_of
from agentwire.runtime.ledger import Admission, Ledger, Request, parcels_of
from agentwire.runtime.loop_reader import LoopReader
from agentwire.runtime.pending import EventLog, Outcome, Outcomes
from agentwire.runtime.reply import Reply, answers_of, reply_of
from agentwire.runtime.request_errors import dead_letter_error, down_error, full_error, late_error
from agentwire.spec.routes import Routes
from agentwire.telemetry.live import LiveStats
from agentwire.wire.codec import encode
from agentwire.wire.credit import CreditGate
from agentwire.wire.messages import (
    DIRECT_PREFIX,
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

REJOINS: Final = 8
"""Connections lost in a row, none of which brought anything, after which the bus is given up."""
REJOIN_S: Final = 0.05
"""Pause before the first attempt to come back; it doubles with each one."""
MAX_TASKS: Final = 512
"""Tasks taken as known to the broker: fewer than it keeps."""
RETRY_S: Final = 0.2


class Link(Protocol):
    """What the client needs of ``bus.endpoint.Endpoint``."""

    final: bool

    @property
    def descriptors(self) -> tuple[int, ...]: ...
    def start(self) -> None: ...
    def poll(self, seconds: float) -> bool: ...
    def send(self, message: Message) -> None: ...
    def close(self, reason: str = "", timeout: float = 2.0) -> None: ...


class Client:
    """Sends requests over a bus and waits for their outcomes.

    Where the connection breaks, the client comes back as a new incarnation and sends again what
    was in flight: agents compute nothing twice, since they know requests by their ids.

    Args:
        connect: makes an endpoint from (on_message, on_lost), each time as a new incarnation.
        wires: wire -> agents on it, direct wires included.
        journal: told which requests were admitted and finished.
        admission, detours, routes: as for ``Ledger``.
        on_dead_letter: told each dead letter with its task, the agent, and why that died.
        stats: totals for whoever looks.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Message, float], None], Callable[[str], None]], Link],
        wires: Mapping[str, Sequence[str]],
        journal: EventLog | None = None,
        *,
        admission: Admission | None = None,
        detours: Mapping[str, str] | None = None,
        routes: Mapping[str, Routes] | None = None,
        on_dead_letter: Callable[[Request, TaskSpec, str, str], None] = lambda *letter: None,
        stats: LiveStats | None = None,
    ) -> None:
        self._on_dead_letter = on_dead_letter
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._thread = threading.get_ident()
        self._hearing: LoopReader | None = None
        self._links = 0  # how many there were
        self._link = self._new_link()
        self._lost_in_a_row = 0
        self._rejoin: asyncio.TimerHandle | None = None
        self._joining = False  # a new link has not been heard from
        self._ledger = Ledger(wires, admission, detours, routes)
        self._gate = CreditGate()
        self._outcomes = Outcomes(journal, stats)
        self._defined: OrderedDict[str, TaskSpec] = OrderedDict()
        self._idle = asyncio.Event()
        self._draining = False
        self._wake: asyncio.TimerHandle | None = None
        self._closed = ""

    def _from_io(self, call: Callable[..., None]) -> Callable[..., None]:
        """``call``, from whichever thread listens to the endpoint, into the loop."""

        def forward(*args: Any) -> None:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(call, *args)
                return
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(call, *args)

        return forward

    def start(self) -> None:
        """Connects; returns at once."""
        self._start_link()

    def _start_link(self) -> None:
        self._stop_hearing()
        self._link.start()
        self._hearing = LoopReader(self._loop, self._link)

    def _stop_hearing(self) -> None:
        if self._hearing is not None:
            self._hearing.close()
            self._hearing = None

    @property
    def outstanding(self) -> int:
        """Requests that were admitted and have not ended."""
        return len(self._ledger)

    @property
    def credits(self) -> dict[str, int]:
        """Messages that may be sent now, by route (a wire without replicas is its own)."""
        return {route: self._gate.left(route).messages for route in self._ledger.routes}

    @property
    def closed(self) -> str:
        """Why nothing can be asked any more; "" while it can."""
        return self._closed

    async def drain(self, seconds: float) -> None:
        """Takes no new requests, and waits until those outstanding have ended, or so long."""
        self._draining = True
        self._note_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def close(self, reason: str) -> None:
        """Ends every outstanding request with CLOSING, and leaves the bus."""
        self._end_all(reason)
        self._stop_hearing()
        await asyncio.to_thread(self._link.close, reason, 2.0)

    # -- agents -----------------------------------------------------------------------------

    def agent_ready(self, agent: str) -> None:
        """An incarnation of this agent can work."""
        self._ledger.ready(agent)
        self._pump()

    def agent_died(self, agent: str, reason: str, *, crashed: bool = True) -> None:
        """Its incarnation is gone: what was in flight through it goes again, or is dead.

        Args:
            crashed: it did not leave in good order, so a request may be to blame.
        """
        death = self._ledger.died(agent, now=self._loop.time(), crashed=crashed)
        # The living end of the wire may still have copies in its queue.
        self._send_cancels(death.recalled)
        for request in death.dead_letters:
            task = self._outcomes.pending(request.request_id).task
            self._on_dead_letter(request, task, agent, reason)
            error = dead_letter_error(request.request_id, agent, reason)
            self._outcomes.fail([request], error)
        self._pump()

    def agent_down(self, agent: str, reason: str) -> None:
        """The agent is gone for good: so is every request through it, now and later."""
        self._outcomes.fail(self._ledger.down(agent, reason), down_error(agent, reason))
        self._pump()

    # -- requests ---------------------------------------------------------------------------

    async def ask(
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
        on_piece: Callable[[int, str], None] | None = None,
    ) -> list[Outcome]:
        """One outcome a text, in order. They travel together, as far as messages allow.

        A request id that is outstanding gets the outcome of that request (and its deadline); one
        that was answered lately gets the same reply again. If the caller is cancelled, so are its
        requests, unless somebody else waits for them.

        Args:
            mode: what the sender does with the soft tokens.
            via: for each text the only process that it may go through, or its route ("": any).
            on_piece: told what comes of the only text's answer: (offset in bytes, piece).

        Raises:
            RequestError: nothing was admitted: an agent is down, or too much is outstanding.
            BusClosed: the bus is closed.
            InputError: a request id is in use for another text.
        """
        if self._closed:
            raise BusClosed(f"The bus is closed: {self._closed}.")
        if self._draining:
            raise BusClosed("The bus is closing: it takes no new requests.")
        if request_ids is None and self._ledger.is_full(len(texts)):
            # New ids cannot be known here: refused before anything is made for them, so that
            # refusing costs next to nothing of what answers the others.
            raise self._overloaded(full_error(self.outstanding))
        ids = list(request_ids or (os.urandom(16) for _ in texts))
        now, trace_id = self._loop.time(), os.urandom(16)
        task_id = task.task_id
        known = {i: reply for i in ids if (reply := self._outcomes.reply(i)) is not None}
        new: dict[bytes, Request] = {}
        for request_id, text, process in zip(ids, texts, via or [""] * len(texts), strict=True):
            old = self._ledger.get(request_id) or new.get(request_id)
            if old is not None and not _is_same(
                old, text, {wire, self._ledger.detour(wire)}, task_id
            ):
                raise InputError(
                    f"The request id {request_id.hex()} is outstanding for another question.",
                    hint="Give each request an id of its own.",
                )
            if old is None and request_id not in known:
                new[request_id] = Request(
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
                )
        timer = self._admit(list(new.values()), task, deadline_s)
        waits = {i: self._outcomes.pending(i) for i in ids if i not in known}
        if on_piece is not None and waits:
            waits[ids[0]].on_piece = on_piece
        try:
            await self._outcomes.wait(waits)
        finally:
            self._abandon([i for i, p in waits.items() if not p.waiting and p.outcome is None])
        if timer is not None and all(r.request_id not in self._ledger for r in new.values()):
            timer.cancel()
        return [known[i] if i in known else waits[i].ended() for i in ids]

    def _admit(
        self, requests: list[Request], task: TaskSpec, deadline_s: float
    ) -> asyncio.TimerHandle | None:
        if not requests:
            return None
        self._define(task)
        try:
            self._ledger.admit(list(parcels_of(requests)))
        except RequestError as error:
            raise self._overloaded(error) from None
        self._outcomes.expect(requests, task)
        self._pump()
        if deadline_s == math.inf:
            return None
        return self._loop.call_later(deadline_s, self._expire, requests)

    def _overloaded(self, error: RequestError) -> RequestError:
        """The error, with when to ask again: once a tenth of what is outstanding has ended."""
        if error.code is NackCode.OVERLOADED:
            error.retry_after_s = self._outcomes.pace.seconds_for(self.outstanding // 10)
        return error

    def _abandon(self, request_ids: Sequence[bytes]) -> None:
        """Cancels requests that nobody waits for any more."""
        requests = [r for i in request_ids if (r := self._ledger.settle(i)) is not None]
        if requests:
            self._send_cancels(requests)
            self._outcomes.fail(requests, RequestError(NackCode.CANCELLED, "It was cancelled."))
            self._pump()

    def _define(self, task: TaskSpec) -> None:
        task_id = task.task_id
        if task_id in self._defined:
            self._defined.move_to_end(task_id)
            return
        try:
            encode(Define(task), Envelope(bytes(16), 0, 0))
        except LocalProtocolError as error:
            raise ScenarioError(error.message, hint="Use a shorter prompt or labels.") from None
        self._send(Define(task))
        self._defined[task_id] = task
        if len(self._defined) > MAX_TASKS:
            self._defined.popitem(last=False)

    def _expire(self, requests: Sequence[Request]) -> None:
        """The deadline has come: what is still outstanding ends."""
        late = [r for r in requests if self._ledger.settle(r.request_id) is not None]
        if not late:
            return
        self._send_cancels(late)
        for request in late:
            sent = request.attempts > 0 or not self._ledger.is_ready(request.wire)
            error = late_error(request.request_id, request.wire, sent=sent)
            self._outcomes.fail([request], error)
        self._pump()

    # -- sending ----------------------------------------------------------------------------

    def _pump(self) -> None:
        """Sends what may be sent now, and comes back when a pause ends."""
        now = self._loop.time()
        while not (self._closed or self._is_apart):
            dispatch = self._ledger.next(now, self._gate.allows)
            if dispatch is None:
                break
            self._gate.take(dispatch.wire, sum(r.size for r in dispatch.requests))
            self._send(message_of(dispatch, now))
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        pause = self._ledger.next_event(now)
        if pause != math.inf:
            self._wake = self._loop.call_at(pause, self._pump)
        self._note_idle()

    @property
    def _is_apart(self) -> bool:
        """Whether there is no link now, or none that the broker has answered on."""
        return self._rejoin is not None or self._joining

    def _note_idle(self) -> None:
        if self._draining and not len(self._ledger):
            self._idle.set()

    def _send(self, message: Message) -> None:
        if self._is_apart:
            return  # tasks are told when the link stands; requests wait for its credit
        try:
            self._link.send(message)
        except BusClosed as error:
            self._lose(self._links, error.message)

    def _send_cancels(self, requests: Iterable[Request]) -> None:
        for cancel in cancels_of(requests):
            self._send(cancel)

    # -- receiving --------------------------------------------------------------------------

    def _receive(self, link: int, message: Message, arrival: float) -> None:
        if link == self._links and self._rejoin is None:
            self._lost_in_a_row = 0
            if self._joining:
                self._joining = False
                for task in self._defined.values():
                    self._send(Define(task))
        elif isinstance(message, Credit):
            return  # of a link that is gone; answers are as good as ever
        match message:
            case Result():
                self._result(message, arrival)
            case Piece():
                self._pieces(message)
            case Nack(rows=rows) if rows:
                self._nack(message)
            case Nack():
                log.warning("refused: %s %s %s", message.code, message.wire, message.reason)
            case Credit(wire, messages, size):
                with contextlib.suppress(RemoteProtocolError):
                    self._gate.add(wire, messages, size)
            case _:
                log.warning("a message that does not concern a client: %s", message)
        self._pump()

    def _pieces(self, pieces: Piece) -> None:
        for row, offset, text in zip(pieces.rows, pieces.offsets, pieces.texts, strict=True):
            listener = self._outcomes.listener(row.request_id, pieces.task)
            if listener is not None:
                listener(offset, text)

    def _result(self, result: Result, arrival: float) -> None:
        task: TaskSpec | None = None
        wanted: list[int] = []
        for i, row in enumerate(result.rows):
            asked = self._outcomes.asked(row.request_id, result.task)
            if asked is not None:
                task = asked
                wanted.append(i)
        if task is None:
            return  # duplicates
        try:
            answers = answers_of(result, task)
        except RemoteProtocolError as error:
            self._nack(Nack(error.code, error.message, result.wire, result.rows))
            return
        answered: list[tuple[Request, Reply]] = []
        for i in wanted:
            request = self._ledger.settle(result.rows[i].request_id)
            if request is not None:
                answered.append((request, reply_of(request, result, i, answers[i], arrival)))
        self._outcomes.answer(answered)

    def _nack(self, nack: Nack) -> None:
        rows: dict[AfterNack, list[Request]] = {then: [] for then in AfterNack}
        for row in nack.rows:
            request = self._ledger.get(row.request_id)
            if request is not None and request.in_flight:  # else it goes again anyway
                rows[_after(nack.code, request)].append(request)
        now = self._loop.time()
        pause = nack.retry_after_ms / 1000 or RETRY_S
        self._ledger.retry(rows[AfterNack.LATER], now=now, after=pause)
        self._ledger.retry(rows[AfterNack.AS_TEXT], now=now, as_text=nack.code.value)
        failed = [r for r in rows[AfterNack.FAIL] if self._ledger.settle(r.request_id)]
        error = RequestError(nack.code, f"{nack.wire}: {nack.reason}")
        self._outcomes.fail(failed, error)

    # -- endings ----------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """The bus is gone for good: every outstanding request ends."""
        self._end_all(f"the bus is lost ({reason})")

    def _lose(self, link: int, reason: str) -> None:
        if link != self._links or self._closed or self._rejoin is not None:
            return
        if self._link.final or self._lost_in_a_row >= REJOINS:
            self.fail(reason)
            return
        log.warning("the connection to the bus is lost (%s): coming back", reason)
        self._gate.clear()  # credit dies with the incarnation that it was granted to
        pause = REJOIN_S * 2**self._lost_in_a_row
        self._lost_in_a_row += 1
        self._rejoin = self._loop.call_later(pause, self._come_back)

    def _come_back(self) -> None:
        """A new link: what was in flight over the old one goes again."""
        self._rejoin = None
        if self._closed:
            return
        self._link = self._new_link()
        self._joining = True
        self._start_link()
        in_flight = [r for r in self._ledger.outstanding() if r.in_flight]
        self._ledger.retry(in_flight, now=self._loop.time())
        self._pump()

    def _new_link(self) -> Link:
        self._links += 1
        receive = functools.partial(self._receive, self._links)
        lose = functools.partial(self._lose, self._links)
        return self._connect(self._from_io(receive), self._from_io(lose))

    def _end_all(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = reason
        outstanding = self._ledger.outstanding()
        self._send_cancels(outstanding)
        for request in outstanding:
            self._ledger.settle(request.request_id)
        self._outcomes.fail(outstanding, RequestError(NackCode.CLOSING, f"Unanswered: {reason}."))
        self._note_idle()
        for timer in (self._wake, self._rejoin):
            if timer is not None:
                timer.cancel()


def _is_same(old: Request, text: str, wires: Collection[str | None], task_id: str) -> bool:
    return old.text == text and old.wire in wires and old.task == task_id


def _after(code: NackCode, request: Request) -> AfterNack:
    then = after_nack(code, channel=request.channel, policy=request.fallback)
    direct = request.wire.startswith(DIRECT_PREFIX)  # has no other channel
    return AfterNack.FAIL if direct and then is AfterNack.AS_TEXT else then
