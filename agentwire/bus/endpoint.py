"""An agent's or client's place on the bus: one socket and one session, with a thread that listens.

A message leaves in the thread that sends it: to wake the IO thread for it would cost more than all
the rest of a send. Only what cannot leave at once (no session yet, or the broker does not read)
waits for the IO thread. ``_turn`` keeps the order: whoever numbers a message writes it before the
next one is numbered. It is never held while the owner's callbacks run.

An owner that has a thread to listen with may do that itself (``attend``), which spares waking it
when something arrives. From then on the IO thread only looks in ``AWAY_S`` after nobody has:
heartbeats never depend on the owner. One that is about to compute says so (``leave``), and the IO
thread listens for it at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from agentwire.bus.lanes import body_bytes
from agentwire.bus.transport import Connects, Frame, Link, Sent
from agentwire.errors import BusClosed, LocalProtocolError, NackCode
from agentwire.wire.events import Closed, Event, Gap, Lost, Outgoing, Received, Refused
from agentwire.wire.messages import (
    Credit,
    Encode,
    Goodbye,
    Hello,
    Message,
    Nack,
    Role,
    Soft,
    Text,
)
from agentwire.wire.session import Session
from agentwire.wire.states import Side, State, Timing

QUEUE_MESSAGES = 256  # that wait for the IO thread; the next sender is held up
UNSENT_MESSAGES = 1024  # that the broker does not read; then it is given up
RECEIVE_BUDGET = 64  # messages taken in before the thread writes again
AWAY_S = 0.05  # how long an owner that listens may be away before the IO thread looks in
TICK_S = 0.02  # between two looks at heartbeats while others are not due; that may change
PRESSED_TICK_S = 0.2  # the same where a message has just come, whose owner waits for it
NAP_S = 20e-6  # between two looks at what the owner computes
NAPS_S = 0.1
LONG_NAP_S = 500e-6  # after ``NAPS_S``: what takes so long does not notice


class Address(Protocol):
    """Where the bus is and what this incarnation says there (``agent.spec.BusAddress``)."""

    @property
    def endpoint(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def token(self) -> str: ...


class Endpoint:
    """A connection to the broker that does its own heartbeats.

    Args:
        address: where the bus is; its token and epoch go into every Hello.
        hello: how this peer introduces itself (its ``token`` is filled in from ``address``).
        on_message: called with each message and the ``time.monotonic()`` of its arrival, for
            every type but Welcome, Ping and Pong. Runs in the thread that listens (the IO thread,
            or the one in ``attend``): it must not block.
            A client also gets a Nack for rows that could not cross: not fit for the wire, or
            answered by frames that do not decode. What did not fit gives its credit back.
        on_lost: called once, with the reason, when the broker is lost, said Goodbye, or refused
            this peer; not after ``close``. Runs as ``on_message`` does.
        timing: limits until the broker's Welcome brings its own.
        transport: for tests; ZeroMQ by default.

    Attributes:
        busy_since: ``time.monotonic()`` of the start of the batch that is being computed; None
            when idle. Set by the compute loop; every Ping and Pong carries it.
        final: known from ``on_lost`` on: the broker said Goodbye or turned this peer away, so
            that coming back makes no sense. False after a broken or silent connection.
    """

    def __init__(
        self,
        address: Address,
        hello: Hello,
        *,
        on_message: Callable[[Message, float], None],
        on_lost: Callable[[str], None],
        timing: Timing | None = None,
        transport: Connects | None = None,
    ) -> None:
        self.busy_since: float | None = None
        self.final = False
        self._address = address
        self._role = hello.role
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport = transport
        self._session = Session(
            Side.PEER,
            run=bytes.fromhex(address.run),
            epoch=address.epoch,
            now=time.monotonic(),
            hello=replace(hello, token=address.token),
            timing=timing,
        )
        self._turn = threading.Lock()  # guards the session and _unsent; taken before _room
        self._queue: deque[Message] = deque()
        self._room = threading.Condition()  # guards the queue and _ended
        self._ended: str | None = None  # why nothing can be sent any more
        self._close_at: float | None = None
        self._goodbye = ""
        self._unsent: deque[list[Frame]] = deque()  # numbered; written by the IO thread
        # Held by whoever listens; taken before the two others.
        self._ears = threading.Lock()
        self._listener = 0  # that thread's ident
        self._due: float | None = None  # of the session's next heartbeat; under _ears
        self._ticked = 0.0  # when it was asked last; under _ears
        self._broken = False  # under _ears
        self._attends = False  # the owner listens; otherwise the IO thread does
        self._left = False  # by ``leave``
        self._listened = 0.0  # when anybody last did; under _ears
        self._nudged = False
        self._arrived = 0  # messages so far; under _ears
        self._rest = threading.Event()  # set: the IO thread must not rest
        self._link: Link | None = None
        self._thread: threading.Thread | None = None

    # -- for any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Connects and says Hello, in a thread of its own; returns at once.

        Raises:
            InputError: the address is not one of a bus.
            LocalProtocolError: it was started before.
        """
        if self._thread is not None:
            raise LocalProtocolError("The endpoint was started before.", hint="Make a new one.")
        if self._transport is None:
            from agentwire.bus.zmq import ZmqTransport  # tests without sockets need no pyzmq

            self._transport = ZmqTransport()
        self._link = self._transport.connect(self._address.endpoint)
        self._thread = threading.Thread(target=self._run, name="agentwire-endpoint", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Sends a message, or queues it; thread-safe. Order is kept for each calling thread.

        Messages queued before the broker's Welcome leave after it. The queue is bounded (256
        messages): where it is full (the broker does not read), this blocks until there is room
        or the broker is lost. Inside ``on_message`` it never blocks.

        Raises:
            BusClosed: the endpoint is closed, or the broker is lost.
            LocalProtocolError: inside ``on_message``, twice the bound is queued: it answers more
                than it is sent.
        """
        listens = threading.get_ident() == self._listener
        if not listens and self._send_now(message):
            return
        with self._room:
            if listens:
                if len(self._queue) >= 2 * QUEUE_MESSAGES:
                    raise LocalProtocolError(
                        f"{2 * QUEUE_MESSAGES} messages wait to be sent.",
                        hint="Send fewer from on_message.",
                    )
            else:
                self._room.wait_for(
                    lambda: self._ended is not None or len(self._queue) < QUEUE_MESSAGES
                )
            if self._ended is not None:
                raise BusClosed(f"The bus is closed: {self._ended}.")
            self._queue.append(message)
        if self._link is not None and not listens:
            self._link.wake()

    def _send_now(self, message: Message) -> bool:
        """Writes a message in the caller's thread; False where it has to be queued."""
        link = self._link
        if link is None:
            return False
        with self._turn:
            waits = self._queue or self._unsent or self._ended is not None
            if waits or self._session.state is not State.OPEN:
                return False
            try:
                frames = self._session.send(message, time.monotonic())
            except LocalProtocolError:
                return False  # the IO thread tells whoever has to know
            if link.send(frames) is not Sent.TAKEN:
                self._unsent.append(frames)
                link.wake()
        return True

    def announce(self, hello: Hello) -> None:
        """Says Hello again, now with the model: this agent is ready.

        Raises:
            BusClosed: as for ``send``.
        """
        self.send(replace(hello, token=self._address.token))

    def close(self, reason: str = "", timeout: float = 2.0) -> None:
        """Sends what is queued and Goodbye, within ``timeout`` seconds, and ends the thread.

        Safe to call twice. Does not call ``on_lost``.
        """
        with self._room:
            if self._ended is None:
                self._ended = "it was closed here"
                self._goodbye = reason
            if self._close_at is None:
                self._close_at = time.monotonic() + timeout
            self._room.notify_all()
        self._rest.set()
        thread = self._thread
        if thread is not None and self._link is not None:
            self._link.wake()
            if thread is not threading.current_thread():
                thread.join(timeout + 1.0)

    def attend(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Listens in the caller's thread until something has arrived, or so long.

        One thread may do that, and not inside ``on_message``. What arrives goes to ``on_message``
        before this returns. After ``leave`` a mere look (0 seconds) does nothing: the IO thread
        listens.

        Args:
            done: also ends the wait; it is asked again and again.

        Returns:
            Whether more may have arrived than was taken in.
        """
        link = self._link
        if link is None or self._thread is None or self._ended is not None:
            return False
        if not self._attends:
            if self._left and seconds <= 0:
                return False  # the IO thread hears all; to take over takes longer than a look
            self._left, self._attends = False, True
            link.wake()  # the IO thread waits: it leaves the ears to us from now on
        with self._ears:
            try:
                self._listener = threading.get_ident()
                return self._attend(link, time.monotonic() + seconds, done)
            except BaseException as error:
                self._lose(f"a bug in the bus: {error!r}")
                raise
            finally:
                self._listener = 0

    def _attend(self, link: Link, end: float, done: Callable[[], bool] | None) -> bool:
        start = now = time.monotonic()
        while not (self._broken or self._ended is not None):
            before = self._arrived
            drained = self._look(link) if done else self._listen(link, end - now)
            if not drained:
                return True
            if self._arrived != before:
                break
            now = time.monotonic()
            if now >= end or self._nudged or (done is not None and done()):
                self._nudged = False
                break
            if done is not None:
                time.sleep(NAP_S if now - start < NAPS_S else LONG_NAP_S)
        return False

    def leave(self) -> None:
        """The thread that attends will compute now: the IO thread listens until it attends again.

        Costs a wake-up of that thread, and nothing where it listens already.
        """
        if self._attends:
            self._left, self._attends = True, False
            self._rest.set()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Files that become readable when ``attend`` has something to do; known after ``start``.

        Empty where the transport has none.
        """
        return () if self._link is None else self._link.descriptors

    def nudge(self) -> None:
        """Makes ``attend`` return, within ``AWAY_S``. Safe in a signal handler: takes no lock."""
        self._nudged = True

    # -- whoever listens --------------------------------------------------------------------

    def _run(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            with self._turn:
                self._unsent.append(self._session.open(time.monotonic()))
            while not (self._broken or self._finished()):
                if self._attends and self._close_at is None:
                    self._rest.wait(AWAY_S)
                    self._rest.clear()
                    if self._nudged:
                        link.wake()
                if not self._attends or self._close_at is not None:
                    self._take_turn(link, 1.0)
                elif time.monotonic() >= self._listened + AWAY_S:
                    self._take_turn(link, 0.0)
            with self._ears:
                self._write(link)
        except BaseException as error:
            self._lose(f"a bug in the bus: {error!r}")
            raise
        finally:
            # Goodbye was written; what is still in the socket has the rest of close()'s time.
            left = (self._close_at or 0.0) - time.monotonic()
            with self._ears:
                link.close(max(0.0, left))
            self._lose("the session has ended")

    def _take_turn(self, link: Link, seconds: float) -> None:
        """``_listen`` in the IO thread, unless somebody does."""
        # Never for long: a nudge needs this thread, also where the owner was just faster.
        if self._ears.acquire(timeout=min(seconds, AWAY_S)):
            try:
                self._listener = threading.get_ident()
                back = self._attends and self._close_at is None  # while this waited for its turn
                self._listen(link, 0.0 if back else seconds)
            finally:
                self._listener = 0
                self._ears.release()

    def _listen(self, link: Link, seconds: float) -> bool:
        """One turn: waits, takes in what has arrived, says what is due.

        Returns:
            False: more may have arrived than was taken in.
        """
        if seconds > 0:
            now = time.monotonic()
            for end in (self._due, self._close_at):
                seconds = seconds if end is None else min(seconds, max(0.0, end - now))
        link.wait(max(0.0, seconds), writable=bool(self._unsent))
        return self._look(link)

    def _look(self, link: Link) -> bool:
        """The same without the wait; what is not due costs nothing, since it is called often."""
        before = self._arrived
        drained = self._receive(link)
        now = self._listened = time.monotonic()
        pause = TICK_S if self._arrived == before else PRESSED_TICK_S
        if drained and (self._due is None or now >= min(self._due, self._ticked + pause)):
            self._due, self._ticked = self._tick(), now
        if self._queue or self._unsent:
            self._flush(link)
        return drained

    def _finished(self) -> bool:
        """Whether ``close`` was called and everything is said, or its time is up."""
        if self._close_at is None:
            return False
        if time.monotonic() >= self._close_at:
            return True
        if self._queue or self._unsent:
            return False
        with self._turn:
            self._unsent.append(self._session.send(Goodbye(self._goodbye), time.monotonic()))
        return True

    def _busy_ms(self, now: float) -> int:
        since = self.busy_since
        return 0 if since is None else max(1, int((now - since) * 1000))

    def _receive(self, link: Link) -> bool:
        """Takes in what has arrived; False if there may be more."""
        for _ in range(RECEIVE_BUDGET):
            frames = link.receive()
            if frames is None:
                return True
            self._arrived += 1
            now = time.monotonic()
            with self._turn:
                events = self._session.receive(frames, now, self._busy_ms(now))
                self._answer(events)
            first = events[0] if len(events) == 1 else None
            if isinstance(first, Received) and not isinstance(first.message, Nack):
                self._on_message(first.message, now)  # as nearly always
            else:
                self._heed(events, now)
        return False

    def _tick(self) -> float | None:
        now = time.monotonic()
        with self._turn:
            due, events = self._session.tick(now, self._busy_ms(now))
            self._answer(events)
        self._heed(events, now)
        return due

    def _answer(self, events: list[Event]) -> None:
        """What the session itself has to say; under ``_turn``, since it is numbered already."""
        for event in events:
            if isinstance(event, Outgoing):
                self._unsent.append(event.frames)

    def _heed(self, events: list[Event], now: float) -> None:
        for event in events:
            match event:
                case Received(Nack(NackCode.STALE_EPOCH, reason, rows=())):
                    self.final = True
                    self._lose(f"another incarnation took this one's place: {reason}")
                case Received(message):
                    self._on_message(message, now)
                case Refused(code, reason, wire, rows) if rows and self._role is Role.CLIENT:
                    self._on_message(Nack(code, reason, wire, rows), now)
                case Gap(expected, received):
                    self._lose(f"{received - expected} messages of the broker were lost")
                case Closed(reason, code):
                    why = f"refused ({code}): {reason}" if code else f"it said Goodbye: {reason}"
                    self.final = True
                    self._lose(why)
                case Lost(reason):
                    self._lose(reason)

    def _flush(self, link: Link) -> None:
        """Writes what waits, and what other threads have queued, as far as the broker reads."""
        while True:
            with self._turn:
                told = self._take_queued()
                self._write(link)
            if len(self._unsent) > UNSENT_MESSAGES:
                self._lose(f"it did not read {UNSENT_MESSAGES} messages")
            if not told:
                return
            for message in told:
                self._on_message(message, time.monotonic())

    def _take_queued(self) -> list[Message]:
        """Numbers queued messages; under ``_turn``. Stops at one that does not fit.

        Returns:
            What the owner has to be told about that one.
        """
        while self._session.state is State.OPEN and len(self._unsent) < QUEUE_MESSAGES:
            with self._room:
                if not self._queue:
                    return []
                message = self._queue.popleft()
                self._room.notify()
            try:
                self._unsent.append(self._session.send(message, time.monotonic()))
            except LocalProtocolError as error:
                return self._misfit(message, error)
        return []

    def _misfit(self, message: Message, error: LocalProtocolError) -> list[Message]:
        """A message that this side may not send: its rows must still end, so the client is told."""
        rows = getattr(message, "rows", ())
        if not rows:
            raise error
        told: list[Message] = []
        nack = Nack(NackCode.MALFORMED, str(error), getattr(message, "wire", ""), rows)
        if self._role is Role.CLIENT:
            told.append(nack)
        else:
            origin = getattr(message, "origin", "")
            nack = replace(nack, origin=origin)
            self._unsent.append(self._session.send(nack, time.monotonic()))
        if isinstance(message, Encode | Soft | Text):  # the credit that it cost was not used
            told.append(Credit(message.wire, 1, body_bytes(message)))
        return told

    def _write(self, link: Link) -> None:
        while self._unsent and link.send(self._unsent[0]) is Sent.TAKEN:
            self._unsent.popleft()

    def _lose(self, reason: str) -> None:
        """The broker is gone: nothing can be sent any more."""
        self._broken = True
        with self._room:
            if self._ended is not None:
                return
            self._ended = f"the broker is lost, {reason}"
            self._queue.clear()
            self._room.notify_all()
        self._on_lost(reason)
