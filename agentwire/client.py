"""The client of a bus, in an asyncio loop: requests in, exactly one outcome each out.

What to send when is the ledger's matter; this joins it to the endpoint, to credit, to timers and
to the futures that callers wait for. Everything but the endpoint's callbacks runs in the loop's
thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from agentwire.agent.fallback import AfterNack, after_nack
from agentwire.dispatch import cancels_of, message_of
from agentwire.endings import dead_letter_error, down_error, late_error
from agentwire.errors import (
    BusClosed,
    InputError,
    LocalProtocolError,
    NackCode,
    RemoteProtocolError,
    RequestError,
    ScenarioError,
)
from agentwire.ledger import Ledger, Request, parcels_of
from agentwire.outcomes import EventLog, Outcome, Outcomes
from agentwire.reply import Reply, answers_of, reply_of
from agentwire.wire.codec import encode
from agentwire.wire.credit import CreditGate
from agentwire.wire.messages import (
    DIRECT_PREFIX,
    Channel,
    Credit,
    Define,
    Envelope,
    Message,
    Nack,
    Result,
    TaskSpec,
)

log = logging.getLogger(__name__)

MAX_TASKS: Final = 512
"""Tasks taken as known to the broker: fewer than it keeps."""
RETRY_S: Final = 0.2


class Link(Protocol):
    """What the client needs of ``bus.endpoint.Endpoint``."""

    def start(self) -> None: ...
    def send(self, message: Message) -> None: ...
    def close(self, reason: str = "", timeout: float = 2.0) -> None: ...


class Client:
    """Sends requests over a bus and waits for their outcomes.

    Args:
        connect: makes the endpoint from (on_message, on_lost).
        wires: wire -> agents on it, direct wires included.
        journal: told which requests were admitted and finished.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Message, float], None], Callable[[str], None]], Link],
        wires: Mapping[str, Sequence[str]],
        journal: EventLog | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = connect(self._from_io(self._receive), self._from_io(self._lose))
        self._ledger = Ledger(wires)
        self._gate = CreditGate()
        self._outcomes = Outcomes(journal)
        self._defined: OrderedDict[str, None] = OrderedDict()
        self._wake: asyncio.TimerHandle | None = None
        self._closed = ""

    def _from_io(self, call: Callable[..., None]) -> Callable[..., None]:
        """``call``, from the endpoint's IO thread into the loop."""

        def forward(*args: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(call, *args)

        return forward

    def start(self) -> None:
        """Connects; returns at once."""
        self._link.start()

    async def close(self, reason: str) -> None:
        """Ends every outstanding request with CLOSING, and leaves the bus."""
        self._end_all(reason)
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
    ) -> list[Outcome]:
        """One outcome a text, in order. They travel together, as far as messages allow.

        A request id that is outstanding gets the outcome of that request (and its deadline); one
        that was answered lately gets the same reply again. If the caller is cancelled, so are its
        requests, unless somebody else waits for them.

        Raises:
            RequestError: nothing was admitted: an agent is down, or too much is outstanding.
            BusClosed: the bus is closed.
            InputError: a request id is in use for another text.
        """
        if self._closed:
            raise BusClosed(f"The bus is closed: {self._closed}.")
        ids = list(request_ids or (os.urandom(16) for _ in texts))
        now = self._loop.time()
        task_id = task.task_id
        known = {i: reply for i in ids if (reply := self._outcomes.reply(i)) is not None}
        new: dict[bytes, Request] = {}
        for request_id, text in zip(ids, texts, strict=True):
            old = self._ledger.get(request_id) or new.get(request_id)
            if old is not None and (old.text, old.wire, old.task) != (text, wire, task_id):
                raise InputError(
                    f"The request id {request_id.hex()} is outstanding for another question.",
                    hint="Give each request an id of its own.",
                )
            if old is None and request_id not in known:
                new[request_id] = Request(
                    request_id, wire, task_id, text, channel, fallback, now, now + deadline_s
                )
        timer = self._admit(list(new.values()), task, deadline_s)
        waits = {i: self._outcomes.pending(i) for i in ids if i not in known}
        try:
            await self._outcomes.wait(waits)
        finally:
            self._abandon([i for i, p in waits.items() if not p.waiters and not p.future.done()])
        if timer is not None and all(r.request_id not in self._ledger for r in new.values()):
            timer.cancel()
        return [known[i] if i in known else waits[i].future.result() for i in ids]

    def _admit(
        self, requests: list[Request], task: TaskSpec, deadline_s: float
    ) -> asyncio.TimerHandle | None:
        if not requests:
            return None
        self._define(task)
        self._ledger.admit(list(parcels_of(requests)))
        self._outcomes.expect(requests, task)
        self._pump()
        if deadline_s == math.inf:
            return None
        return self._loop.call_later(deadline_s, self._expire, requests)

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
        self._defined[task_id] = None
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
        while not self._closed:
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

    def _send(self, message: Message) -> None:
        try:
            self._link.send(message)
        except BusClosed as error:
            self._lose(error.message)

    def _send_cancels(self, requests: Iterable[Request]) -> None:
        for cancel in cancels_of(requests):
            self._send(cancel)

    # -- receiving --------------------------------------------------------------------------

    def _receive(self, message: Message, arrival: float) -> None:
        match message:
            case Result():
                self._result(message, arrival)
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
                answered.append((request, reply_of(request, result, answers[i], arrival)))
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

    def _lose(self, reason: str) -> None:
        self._end_all(f"the bus is lost ({reason})")

    def _end_all(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = reason
        outstanding = self._ledger.outstanding()
        self._send_cancels(outstanding)
        for request in outstanding:
            self._ledger.settle(request.request_id)
        self._outcomes.fail(outstanding, RequestError(NackCode.CLOSING, f"Unanswered: {reason}."))
        if self._wake is not None:
            self._wake.cancel()


def _after(code: NackCode, request: Request) -> AfterNack:
    then = after_nack(code, channel=request.channel, policy=request.fallback)
    direct = request.wire.startswith(DIRECT_PREFIX)  # has no other channel
    return AfterNack.FAIL if direct and then is AfterNack.AS_TEXT else then
