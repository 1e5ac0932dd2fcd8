"""A peer's connection to the broker: one socket, one session, and an IO thread.

A message leaves in the thread that sends it; only what cannot leave at once (no session yet, or the
broker does not read) waits for the IO thread. ``_send_lock`` keeps the order: a message is written
before the next one is numbered. It is never held during the owner's callbacks.

An owner may read in its own thread (``poll``). The IO thread then takes over when nobody has read
for ``TAKEOVER_S``, so that heartbeats do not depend on the owner, or after ``hand_over`` at once.
docs/design/bus.md has the reasons.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from agentwire.bus.transport import Connector, Frame, Link, Sent, transport_for
from agentwire.errors import BusClosed, LocalProtocolError, NackCode
from agentwire.spec.agent import BusAddress
from agentwire.wire import messages as m
from agentwire.wire.credit import body_bytes
from agentwire.wire.events import (
    Event,
    MessageReceived,
    MessageRefused,
    Outgoing,
    PeerLeft,
    PeerLost,
    SessionOpened,
)
from agentwire.wire.fields import Misfit
from agentwire.wire.session import Session, Side, State, Timing

QUEUE_MESSAGES = 256  # that wait for the IO thread; then a sender blocks
UNSENT_MESSAGES = 1024  # that the broker does not read; then it counts as lost
UNSENT_BYTES = 512 * 1024 * 1024  # the same
RECEIVE_BUDGET = 64  # messages received before the thread writes again
TAKEOVER_S = 0.05  # how long an owner may not poll before the IO thread reads for it
TICK_S = 0.02  # least time between two ticks of the session, unless one is due
BUSY_TICK_S = 0.2  # the same just after a message: its owner waits for this thread
NAP_S = 20e-6  # between two checks of ``done``
NAPS_S = 0.1  # then the checks become rarer: a longer computation does not need them as often
LONG_NAP_S = 500e-6


class Endpoint:
    """A connection to the broker that sends its own heartbeats.

    Args:
        address: where the bus is; its token and epoch go into every Hello.
        hello: this peer's Hello (its ``token`` is filled in from ``address``).
        on_message: called with each message and the ``time.monotonic()`` of its arrival, for
            every type but Welcome, Ping and Pong. Runs in the thread that reads (the IO thread,
            or the one in ``poll``), so it must not block.
            A client also gets a Nack for rows that could not cross: they did not fit the wire, or
            the frames of their answer could not be decoded. Unused credit comes back as a Credit.
        on_lost: called once, with the reason, when the broker is lost, sent Goodbye or rejected
            this peer; not after ``close``. Runs in the same thread as ``on_message``.
        timing: time limits until the broker's Welcome announces its own.
        transport: by default the one registered for the address's URL scheme.

    Attributes:
        busy_since: ``time.monotonic()`` of the start of the current batch; None when idle. The
            compute loop sets it; every Ping and Pong carries it.
        final: set before ``on_lost``: the broker sent Goodbye or rejected this peer, so there is
            no point in connecting again. False after a broken or silent connection.
        admitted: the broker's Welcome has arrived.
        refusal: code of the Nack by which the broker rejected or replaced this peer.
    """

    def __init__(
        self,
        address: BusAddress,
        hello: m.Hello,
        *,
        on_message: Callable[[m.Message, float], None],
        on_lost: Callable[[str], None],
        timing: Timing | None = None,
        transport: Connector | None = None,
    ) -> None:
        self.busy_since: float | None = None
        self.final = self.admitted = False
        self.refusal: NackCode | None = None
        self._address = address
        self._client = hello.name if hello.role is m.Role.CLIENT else ""
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
        self._link: Link | None = None
        self._thread: threading.Thread | None = None
        # Locks are taken in this order: _read_lock, _send_lock, _queue_changed.
        self._read_lock = threading.Lock()  # held by the thread that reads
        self._reader = 0  # that thread's ident
        self._due: float | None = None  # when the session must be ticked; under _read_lock
        self._ticked = 0.0  # when it was ticked; under _read_lock
        self._last_read = 0.0  # under _read_lock
        self._received = 0  # messages so far; under _read_lock
        self._broken = False  # under _read_lock
        self._send_lock = threading.Lock()  # guards the session and _unsent
        self._unsent: deque[list[Frame]] = deque()  # numbered; written by the IO thread
        self._queue_changed = threading.Condition()  # guards the queue and _ended
        self._queue: deque[m.Message] = deque()
        self._ended: str | None = None  # why nothing can be sent any more
        self._close_at: float | None = None
        self._goodbye = ""
        self._owner_reads = False  # otherwise the IO thread does
        self._handed_over = False
        self._woken = False
        self._io_wake = threading.Event()

    # -- for any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Connects and sends Hello, in a thread of its own; returns at once.

        Raises:
            InputError: not an address of a bus.
            LocalProtocolError: it was started before.
        """
        if self._thread is not None:
            raise LocalProtocolError("The endpoint was started before.", hint="Make a new one.")
        transport = self._transport or transport_for(self._address.endpoint)
        self._link = transport.connect(self._address.endpoint)
        thread = threading.Thread(target=self._run, name="agentwire-endpoint", daemon=True)
        thread.start()
        self._thread = thread

    def send(self, message: m.Message) -> None:
        """Sends a message, or queues it. Thread-safe; keeps the order of each calling thread.

        Messages queued before the broker's Welcome leave after it. The queue holds 256 messages:
        while it is full (the broker does not read), this blocks until there is room or the broker
        is lost. Inside ``on_message`` it never blocks.

        Raises:
            BusClosed: the endpoint is closed, or the broker is lost.
            LocalProtocolError: inside ``on_message``, when twice that many messages are queued.
        """
        reading = threading.get_ident() == self._reader
        link = self._link
        if not reading and link is not None:
            with self._send_lock:
                waits = self._queue or self._unsent or self._ended is not None
                if not waits and self._session.state is State.OPEN:
                    try:
                        frames = self._session.send(message, time.monotonic())
                    except LocalProtocolError:
                        pass  # it is queued as well, and the IO thread reports the error
                    else:
                        if link.send(frames) is not Sent.TAKEN:
                            self._unsent.append(frames)
                            link.wake()
                        return
        self._enqueue(message, reading)
        if link is not None and not reading:
            link.wake()

    def _enqueue(self, message: m.Message, reading: bool) -> None:
        """Queues a message for the IO thread; waits for room unless this thread is ``reading``."""
        with self._queue_changed:
            if reading:
                if len(self._queue) >= 2 * QUEUE_MESSAGES:
                    raise LocalProtocolError(
                        f"{2 * QUEUE_MESSAGES} messages wait to be sent.",
                        hint="Send fewer from on_message.",
                    )
            else:
                self._queue_changed.wait_for(
                    lambda: self._ended is not None or len(self._queue) < QUEUE_MESSAGES
                )
            if self._ended is not None:
                raise BusClosed(f"The bus is closed: {self._ended}.")
            self._queue.append(message)

    def announce(self, hello: m.Hello) -> None:
        """Sends the second Hello, with the model: this agent is ready. Raises as ``send``."""
        self.send(replace(hello, token=self._address.token))

    def close(self, reason: str = "", timeout: float = 2.0) -> None:
        """Sends what is queued and Goodbye, within ``timeout`` seconds, and ends the thread.

        Safe to call twice. Does not call ``on_lost``.
        """
        with self._queue_changed:
            if self._ended is None:
                self._ended = "it was closed here"
                self._goodbye = reason
            if self._close_at is None:
                self._close_at = time.monotonic() + timeout
            self._queue_changed.notify_all()
        self._io_wake.set()
        thread = self._thread
        if thread is not None and self._link is not None:
            self._link.wake()
            if thread is not threading.current_thread():
                thread.join(timeout + 1.0)

    def poll(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Reads in the caller's thread until something arrives or the time is up.

        Only one thread may call it, and not inside ``on_message``. Messages go to ``on_message``
        before this returns. After ``hand_over`` a poll of 0 seconds does nothing: the IO thread
        reads.

        Args:
            done: also ends the wait when it returns True; it is called repeatedly.

        Returns:
            Whether more may have arrived than was read.
        """
        link = self._link
        if link is None or self._thread is None or self._ended is not None:
            return False
        if not self._owner_reads:
            if self._handed_over and seconds <= 0:
                return False  # to take reading back would take longer than the poll
            self._handed_over, self._owner_reads = False, True
            link.wake()  # so that the IO thread stops waiting and releases _read_lock
        with self._read_lock:
            try:
                self._reader = threading.get_ident()
                return self._poll(link, time.monotonic() + seconds, done)
            except BaseException as error:
                self._lose(f"a bug in the bus: {error!r}")
                raise
            finally:
                self._reader = 0

    def _poll(self, link: Link, end: float, done: Callable[[], bool] | None) -> bool:
        start = now = time.monotonic()
        while not (self._broken or self._ended is not None):
            before = self._received
            drained = self._process(link) if done else self._wait_and_process(link, end - now)
            if not drained:
                return True
            if self._received != before:
                break
            now = time.monotonic()
            if now >= end or self._woken or (done is not None and done()):
                self._woken = False
                break
            if done is not None:
                time.sleep(NAP_S if now - start < NAPS_S else LONG_NAP_S)
        return False

    def hand_over(self) -> None:
        """The polling thread is about to compute: the IO thread reads until the next ``poll``."""
        if self._owner_reads:
            self._handed_over, self._owner_reads = True, False
            self._io_wake.set()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Files that become readable when ``poll`` has something to do; may be empty."""
        return () if self._link is None else self._link.descriptors

    def wake(self) -> None:
        """Makes ``poll`` return within ``TAKEOVER_S``. Takes no lock: safe in a signal handler."""
        self._woken = True

    # -- the IO thread ----------------------------------------------------------------------

    def _run(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            with self._send_lock:
                self._unsent.append(self._session.open(time.monotonic()))
            while not (self._broken or (self._close_at is not None and self._finished())):
                if self._owner_reads and self._close_at is None:
                    self._io_wake.wait(TAKEOVER_S)
                    self._io_wake.clear()
                    if self._woken:
                        link.wake()
                if not self._owner_reads or self._close_at is not None:
                    self._read_in_io_thread(link, 1.0)
                elif time.monotonic() >= self._last_read + TAKEOVER_S:
                    self._read_in_io_thread(link, 0.0)
            with self._read_lock:
                self._write(link)
        except BaseException as error:
            self._lose(f"a bug in the bus: {error!r}")
            raise
        finally:
            # Goodbye was written; what is still in the socket has the rest of close()'s time.
            left = (self._close_at or 0.0) - time.monotonic()
            with self._read_lock:
                link.close(max(0.0, left))
            self._lose("the session has ended")

    def _read_in_io_thread(self, link: Link, seconds: float) -> None:
        """Unless the owner reads. Never waits long: ``wake`` needs this thread."""
        if self._read_lock.acquire(timeout=min(seconds, TAKEOVER_S)):
            try:
                self._reader = threading.get_ident()
                # The owner may have come back while this thread waited for the lock.
                back = self._owner_reads and self._close_at is None
                self._wait_and_process(link, 0.0 if back else seconds)
            finally:
                self._reader = 0
                self._read_lock.release()

    def _finished(self) -> bool:
        """After ``close``: whether everything is written, or the time is up."""
        if time.monotonic() >= (self._close_at or 0.0):
            return True
        if self._queue or self._unsent:
            return False
        with self._send_lock:
            self._unsent.append(self._session.send(m.Goodbye(self._goodbye), time.monotonic()))
        return True

    # -- the thread that reads --------------------------------------------------------------

    def _wait_and_process(self, link: Link, seconds: float) -> bool:
        if seconds > 0:
            now = time.monotonic()
            for end in (self._due, self._close_at):
                seconds = seconds if end is None else min(seconds, max(0.0, end - now))
        link.wait(max(0.0, seconds), writable=bool(self._unsent))
        return self._process(link)

    def _process(self, link: Link) -> bool:
        """Receives, ticks and writes what is due; False if more may have arrived."""
        before = self._received
        drained = self._receive(link)
        now = self._last_read = time.monotonic()
        pause = TICK_S if self._received == before else BUSY_TICK_S
        if drained and (self._due is None or now >= min(self._due, self._ticked + pause)):
            with self._send_lock:
                self._due, events = self._session.tick(now, self.busy_since)
                self._keep_outgoing(events)
            self._ticked = now
            if events:
                self._handle(events, now)
        if self._queue or self._unsent:
            self._flush(link)
        return drained

    def _receive(self, link: Link) -> bool:
        for _ in range(RECEIVE_BUDGET):
            frames = link.receive()
            if frames is None:
                return True
            self._received += 1
            now = time.monotonic()
            with self._send_lock:
                events = self._session.receive(frames, now, self.busy_since)
                first = events[0] if len(events) == 1 else None
                if not isinstance(first, MessageReceived):
                    self._keep_outgoing(events)
            if isinstance(first, MessageReceived) and not isinstance(first.message, m.Nack):
                self._on_message(first.message, now)  # the usual case
            else:
                self._handle(events, now)
        return False

    def _keep_outgoing(self, events: list[Event]) -> None:
        """Under _send_lock, since these frames are numbered already."""
        for event in events:
            if isinstance(event, Outgoing):
                self._unsent.append(event.frames)

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            match event:
                case SessionOpened():
                    self.admitted = True
                case MessageReceived(m.Nack(NackCode.STALE_EPOCH, reason, rows=())):
                    self.final, self.refusal = True, NackCode.STALE_EPOCH
                    self._lose(f"another incarnation replaced this one: {reason}")
                case MessageReceived(message):
                    self._on_message(message, now)
                case MessageRefused(code, reason, wire, rows) if rows and self._client:
                    self._on_message(m.Nack(code, reason, wire, rows, origin=self._client), now)
                case PeerLeft(reason=reason, code=code):
                    why = f"refused ({code}): {reason}" if code else f"it said Goodbye: {reason}"
                    self.final, self.refusal = True, code
                    self._lose(why)
                case PeerLost(reason=reason):
                    self._lose(reason)

    def _flush(self, link: Link) -> None:
        """Writes what waits, as far as the broker reads."""
        while True:
            with self._send_lock:
                replies = self._number_queued()
                self._write(link)
            unsent = sum(len(frame) for frames in tuple(self._unsent) for frame in frames)
            if len(self._unsent) > UNSENT_MESSAGES or unsent > UNSENT_BYTES:
                self._lose(f"it did not read {len(self._unsent)} messages of {unsent} bytes")
            if not replies:
                return
            for message in replies:
                self._on_message(message, time.monotonic())

    def _number_queued(self) -> list[m.Message]:
        """Numbers queued messages; under _send_lock. Stops at one that does not fit the wire, and
        returns what the owner has to be told about it."""
        while self._session.state is State.OPEN and len(self._unsent) < QUEUE_MESSAGES:
            with self._queue_changed:
                if not self._queue:
                    return []
                message = self._queue.popleft()
                self._queue_changed.notify()
            try:
                self._unsent.append(self._session.send(message, time.monotonic()))
            except LocalProtocolError as error:
                return self._reject_unsendable(message, error)
        return []

    def _reject_unsendable(self, message: m.Message, error: LocalProtocolError) -> list[m.Message]:
        """The rows of a message that cannot be sent must still end, so the client gets a Nack."""
        rows = getattr(message, "rows", ())
        if not rows:
            raise error
        replies: list[m.Message] = []
        code = error.__cause__.code if isinstance(error.__cause__, Misfit) else NackCode.MALFORMED
        origin = self._client or getattr(message, "origin", "")
        nack = m.Nack(code, str(error), getattr(message, "wire", ""), rows, origin=origin)
        if self._client:
            replies.append(nack)
        else:
            self._unsent.append(self._session.send(nack, time.monotonic()))
        if isinstance(message, m.Encode | m.Soft | m.Text):  # its credit was not used
            replies.append(m.Credit(message.wire, 1, body_bytes(message)))
        return replies

    def _write(self, link: Link) -> None:
        while self._unsent and link.send(self._unsent[0]) is Sent.TAKEN:
            self._unsent.popleft()

    def _lose(self, reason: str) -> None:
        """The broker is gone: nothing can be sent any more."""
        self._broken = True
        with self._queue_changed:
            if self._ended is not None:
                return
            self._ended = f"the broker is lost, {reason}"
            self._queue.clear()
            self._queue_changed.notify_all()
        self._on_lost(reason)
