"""One peer of the protocol as a state machine: no socket, no thread, no clock.

The rules:

* Time comes in as ``now`` (seconds of any monotonic clock) and is never read here.
* ``receive`` never raises on what a peer sent: it gives events, among them the refusal and the
  frames that answer it.
* ``send`` raises LocalProtocolError for what this side may not send now (see ``TRANSITIONS`` and
  ``MAY_SEND``), and then changes nothing.
* Sequence numbers are given out in the order of calls, so frames must be written in the order in
  which they come from here: write every ``Outgoing`` before the next call.
* Read everything that has arrived before ``tick``: a thread that was held up for long would
  otherwise take its own delay for the peer's silence.

A session lasts one incarnation of a peer. A new incarnation is a new connection and a new session.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentwire.errors import LocalProtocolError, NackCode
from agentwire.wire.codec import (
    Sealed,
    Undecodable,
    encode,
    reseal,
    unseal,
)
from agentwire.wire.events import (
    Announced,
    Busy,
    Closed,
    Duplicate,
    Event,
    Gap,
    Greeted,
    Lost,
    Opened,
    Outgoing,
    Received,
    Refused,
)
from agentwire.wire.fields import MAX_U32, TYPE_OF
from agentwire.wire.limits import DEFAULT_LIMITS, Limits
from agentwire.wire.messages import (
    PROTOCOL_VERSION,
    Envelope,
    Goodbye,
    Hello,
    Message,
    MessageType,
    Nack,
    Ping,
    Pong,
    Welcome,
)
from agentwire.wire.states import Direction, Side, State, Timing, plain_messages, step

__all__ = [
    "Announced",
    "Busy",
    "Closed",
    "Duplicate",
    "Event",
    "Gap",
    "Greeted",
    "Lost",
    "Opened",
    "Outgoing",
    "Received",
    "Refused",
    "Session",
    "Side",
    "State",
    "Timing",
    "choose_version",
]

UNKNOWN_RUN = bytes(16)
"""Run id in the Hello of a peer that was not told which run it joins."""
MAX_GAP = 65_536
"""A sequence number further ahead than this is damage or malice, not loss."""


class _Refuse(Exception):
    """What was received is not allowed; becomes ``Refused`` and a Nack."""

    def __init__(self, code: NackCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def choose_version(offered: Sequence[int]) -> int | None:
    """The newest version that both speak; None if there is none."""
    return PROTOCOL_VERSION if PROTOCOL_VERSION in offered else None


def _in_field(busy_ms: int) -> int:
    """``tick`` and ``receive`` do not raise, also where a clock says something odd."""
    return min(max(0, int(busy_ms)), MAX_U32)


class Session:
    """One end of a connection between a peer and the broker.

    Args:
        side: which end this is.
        run: 16-byte id of the run; messages of another run are refused. A peer that does not
            know it gives ``UNKNOWN_RUN``, and learns it from the Welcome.
        epoch: incarnation of this end, sent with every message.
        now: current time in seconds.
        hello: peer side: what ``open`` will say; also fixes the role.
        timing: time limits. A peer takes ping and liveness from the broker's Welcome instead.
        limits: the codec's limits.
        keyed: broker side: the transport knows the peer by its key, so its Hello may leave the run
            open.
    """

    def __init__(
        self,
        side: Side,
        *,
        run: bytes,
        epoch: int,
        now: float,
        hello: Hello | None = None,
        timing: Timing | None = None,
        limits: Limits = DEFAULT_LIMITS,
        keyed: bool = False,
    ) -> None:
        if (side is Side.PEER) != (hello is not None):
            raise LocalProtocolError(
                "A peer needs its Hello and the broker gets one.", hint="Pass hello= for a peer."
            )
        self.side = side
        self.state = State.START
        self.hello = hello
        self.remote_epoch: int | None = None
        self.timing = timing or Timing()
        self._run = run
        self._epoch = epoch
        self._limits = limits
        self._keyed = keyed
        # What means nothing to this session itself, once it is open.
        self._hears: frozenset[type[Message]] = frozenset()
        self._says: frozenset[type[Message]] = frozenset()
        self._next_out = 0
        self._next_in = 0
        self._undecoded = 0
        self._started = now
        self._heard = now  # when something last came
        self._reported = now  # when busy_ms last went out

    # -- sending ----------------------------------------------------------------------------

    def open(self, now: float) -> list[bytes | memoryview]:
        """Peer: the frames of the Hello that opens the session."""
        if self.hello is None:
            raise LocalProtocolError("The broker does not say Hello.", hint="Wait for Greeted.")
        self._started = self._heard = now
        return self.send(self.hello, now)

    def welcome(self, now: float) -> list[bytes | memoryview]:
        """Broker: the frames of the Welcome that lets a greeted peer in."""
        version = choose_version(self.hello.versions if self.hello else ())
        answer = Welcome(version or PROTOCOL_VERSION, self.timing.ping_ms, self.timing.liveness_ms)
        return self.send(answer, now)

    def reject(self, code: NackCode, reason: str, now: float) -> list[bytes | memoryview]:
        """Broker: the frames of the Nack that turns a greeted peer away; closes the session."""
        return self.send(Nack(code, reason), now)

    def send(
        self, message: Message, now: float, sealed: Sealed | None = None
    ) -> list[bytes | memoryview]:
        """The frames of a message, numbered. Write them in the order of calls.

        Args:
            sealed: how the message came, where it goes on with no change but its origin.

        Raises:
            LocalProtocolError: this side may not send that now, or it does not fit the wire.
                No number is used up.
        """
        after = self.state
        if after is not State.OPEN or type(message) not in self._says:
            after = self._after_sending(message)
        envelope = Envelope(self._run, self._next_out, self._epoch)
        if sealed is None:
            frames = encode(message, envelope, self._limits)
        else:
            frames = reseal(sealed, envelope, getattr(message, "origin", ""), self._limits)
        self._next_out += 1
        self.state = after
        if isinstance(message, Hello):
            self.hello = message
        elif isinstance(message, Ping | Pong):
            self._reported = now
        return frames

    def _after_sending(self, message: Message) -> State:
        """The state that sending it leads to.

        Raises:
            LocalProtocolError: this side may not send that now.
        """
        self._learn_plain()
        kind = TYPE_OF[type(message)]
        after = self._step(Direction.SEND, kind)
        if after is None:
            raise LocalProtocolError(
                f"A {self.side} session that is {self.state} may not send {kind.name}.",
                hint="docs/protocol.md shows what each state allows.",
            )
        if self.state is State.OPEN and isinstance(message, Hello):
            problem = self._hello_problem(message)
            if problem:
                raise LocalProtocolError(problem, hint="Say Hello again when the model is loaded.")
        return after

    # -- time -------------------------------------------------------------------------------

    def tick(self, now: float, busy_ms: int = 0) -> tuple[float | None, list[Event]]:
        """What is due by now, and when to call again at the latest (None: never).

        Args:
            busy_ms: how long this side's compute loop has worked without finishing a batch.
        """
        events: list[Event] = []
        if self.state is State.CLOSED:
            return None, events
        if self.state is not State.OPEN:
            deadline = self._started + self.timing.handshake_ms / 1000
            if now < deadline:
                return deadline, events
            self.state = State.CLOSED
            waited = f"{self.timing.handshake_ms} ms"
            return None, [Lost(f"no {'Welcome' if self.hello else 'Hello'} within {waited}")]
        lost_at = self._heard + self.timing.liveness_ms / 1000
        if now >= lost_at:
            self.state = State.CLOSED
            return None, [Lost(f"silent for {self.timing.liveness_ms} ms")]
        if now >= self._ping_at(busy_ms):
            events.append(Outgoing(self.send(Ping(_in_field(busy_ms)), now)))
        return min(lost_at, self._ping_at(busy_ms)), events

    def _ping_at(self, busy_ms: int) -> float:
        # A busy side reports even while messages come in: the progress deadline of the other side
        # must not depend on who else talks.
        quiet_since = self._reported if busy_ms else max(self._heard, self._reported)
        return quiet_since + self.timing.ping_ms / 1000

    # -- receiving --------------------------------------------------------------------------

    def receive(
        self, frames: Sequence[bytes | memoryview], now: float, busy_ms: int = 0
    ) -> list[Event]:
        """What one message means. Never raises, whatever the bytes.

        Args:
            frames: the three frames of one message, without routing frames.
            busy_ms: as in ``tick``; a Pong carries it.
        """
        if self.state is State.CLOSED:
            return []
        try:
            envelope, message, sealed = unseal(frames, self._limits)
        except Undecodable as error:
            self._undecoded += 1
            refused = Refused(error.code, str(error), error.wire, error.rows, error.origin)
            return self._refuse(refused, now)
        if (
            self.state is State.OPEN
            and type(message) in self._hears
            and envelope.seq == self._next_in
            and envelope.epoch == self.remote_epoch
            and envelope.run == self._run
        ):  # as nearly always: nothing but the next message for the layer above
            self._undecoded, self._next_in, self._heard = 0, envelope.seq + 1, now
            return [Received(message, envelope, sealed if self.side is Side.BROKER else None)]
        self._learn_plain()
        events: list[Event] = []
        try:
            self._check_envelope(envelope, message)
            if envelope.seq < self._next_in:
                # No sign of life: a broker that no longer knows this connection answers as well.
                return [self._unknown_there(envelope, message) or Duplicate(envelope.seq)]
            self._count(envelope.seq, events)
            self._heard = now
            events += self._accept(message, envelope, sealed, now, busy_ms)
        except _Refuse as error:
            refused = Refused(
                error.code,
                str(error),
                getattr(message, "wire", ""),
                getattr(message, "rows", ()),
                getattr(message, "origin", ""),
            )
            events += self._refuse(refused, now, answer=not isinstance(message, Nack))
        return events

    def _check_envelope(self, envelope: Envelope, message: Message) -> None:
        if envelope.run != self._run and not self._may_differ(envelope.run, message):
            raise _Refuse(NackCode.UNAUTHORIZED, "the message belongs to another run")
        # The first message in a direction fixes the incarnation.
        if self.remote_epoch is not None and envelope.epoch != self.remote_epoch:
            raise _Refuse(
                NackCode.STALE_EPOCH,
                f"epoch {envelope.epoch}, but this session is with epoch {self.remote_epoch}",
            )
        if envelope.seq - self._next_in > MAX_GAP:
            raise _Refuse(
                NackCode.MALFORMED, f"sequence {envelope.seq} is too far from {self._next_in}"
            )

    def _may_differ(self, run: bytes, message: Message) -> bool:
        """Whether one side does not know the run yet, and that is in order."""
        if self.side is Side.BROKER:
            first = self.state is State.START and isinstance(message, Hello)
            return first and self._keyed and run == UNKNOWN_RUN
        learns = self._run == UNKNOWN_RUN and self.state is State.GREETING
        if learns and isinstance(message, Welcome):
            self._run = run
        return learns

    def _unknown_there(self, envelope: Envelope, message: Message) -> Lost | None:
        """The end of a peer's session where the broker began a new one.

        A transport that comes back by itself after a broken connection is somebody new to the
        broker, who turns away what is no Hello: with a Nack, numbered 0, where the Welcome was.
        """
        if self.side is Side.BROKER or envelope.seq != 0 or not isinstance(message, Nack):
            return None
        self.state = State.CLOSED
        return Lost(f"the broker does not know this connection: {message.reason}")

    def _count(self, seq: int, events: list[Event]) -> None:
        """Moves on to the number after ``seq``; numbers of refused messages are no gap."""
        if seq > self._next_in + self._undecoded:
            events.append(Gap(self._next_in, seq))
        self._undecoded = 0
        self._next_in = seq + 1

    def _accept(
        self, message: Message, envelope: Envelope, sealed: Sealed, now: float, busy_ms: int
    ) -> list[Event]:
        kind = TYPE_OF[type(message)]
        after = self._step(Direction.RECEIVE, kind)
        if after is None:
            raise _Refuse(
                NackCode.UNAUTHORIZED, f"{kind.name} is not allowed: the session is {self.state}"
            )
        if self.state is not State.OPEN or after is not State.OPEN:
            self.remote_epoch = envelope.epoch
            return self._shake_hands(message, envelope, after, now)
        match message:
            case Hello():
                return [Announced(self._second_hello(message))]
            case Ping():
                return [Busy(message.busy_ms), Outgoing(self.send(Pong(_in_field(busy_ms)), now))]
            case Pong():
                return [Busy(message.busy_ms)]
        return [Received(message, envelope, sealed if self.side is Side.BROKER else None)]

    def _shake_hands(
        self, message: Message, envelope: Envelope, after: State, now: float
    ) -> list[Event]:
        match message:
            case Hello():
                if choose_version(message.versions) is None:
                    raise _Refuse(
                        NackCode.VERSION, f"this broker speaks version {PROTOCOL_VERSION} alone"
                    )
                self.hello, self.state = message, after
                return [Greeted(message, envelope.epoch)]
            case Welcome():
                problem = self._welcome_problem(message)
                if problem is not None:
                    # Nothing can follow, so neither end should wait for the handshake's limit.
                    goodbye = Outgoing(self.send(Goodbye(str(problem)), now))
                    return [goodbye, Closed(str(problem), problem.code)]
                self.timing = Timing(message.ping_ms, message.liveness_ms, self.timing.handshake_ms)
                self.state, self._reported = after, now
                return [Opened(message)]
            case Nack():
                self.state = after
                return [Closed(message.reason, message.code)]
            case Goodbye():
                self.state = after
                return [Closed(message.reason)]
        raise _Refuse(NackCode.UNAUTHORIZED, "the session is not open")

    def _welcome_problem(self, welcome: Welcome) -> _Refuse | None:
        if welcome.version not in (self.hello.versions if self.hello else ()):
            return _Refuse(NackCode.VERSION, f"version {welcome.version} was not offered")
        if welcome.liveness_ms <= welcome.ping_ms:
            return _Refuse(NackCode.MALFORMED, "liveness_ms must be above ping_ms")
        return None

    def _second_hello(self, hello: Hello) -> Hello:
        problem = self._hello_problem(hello)
        if problem:
            raise _Refuse(NackCode.UNAUTHORIZED, problem)
        self.hello = hello
        return hello

    def _hello_problem(self, hello: Hello) -> str:
        """Why this cannot be the second Hello of the session; "" if it can."""
        first = self.hello
        if first is None or (hello.name, hello.role) != (first.name, first.role):
            return "a peer cannot change its name or role"
        return "" if hello.model else "a second Hello must name the model"

    def _refuse(self, refused: Refused, now: float, *, answer: bool = True) -> list[Event]:
        events: list[Event] = [refused]
        # A Nack is never answered by a Nack, or two ends could go on for ever.
        if answer and self._step(Direction.SEND, MessageType.NACK) is not None:
            nack = Nack(
                refused.code, refused.reason, refused.wire, refused.rows, origin=refused.origin
            )
            events.append(Outgoing(self.send(nack, now)))
        return events

    def _learn_plain(self) -> None:
        """Once the session is open, what crosses it in either direction is known."""
        if self.state is State.OPEN and not self._says:
            role = self.hello.role if self.hello else None
            self._hears, self._says = plain_messages(self.side, role)

    def _step(self, direction: Direction, kind: MessageType) -> State | None:
        role = self.hello.role if self.hello else None
        return step(self.side, role, self.state, direction, kind)
