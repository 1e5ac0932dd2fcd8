"""One end of a connection as a state machine: no socket, no thread, no clock.

The rules:

* Time is passed in as ``now`` (seconds of any monotonic clock).
* ``receive`` never raises, whatever the bytes: it returns events, among them refusals and the
  frames that answer them.
* ``send`` raises LocalProtocolError for a message that this side may not send now (``TRANSITIONS``
  and ``MAY_SEND``), and then changes nothing.
* Messages are numbered in the order of calls, so write each ``Outgoing`` before the next call.
* Read everything that has arrived before ``tick``: otherwise a thread that was held up would take
  its own delay for the peer's silence.

A session lasts for one incarnation of a peer; the next incarnation has a new connection and a new
session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agentwire.errors import LocalProtocolError, NackCode
from agentwire.wire.codec import Sealed, Undecodable, encode, reseal, unseal
from agentwire.wire.events import (
    DuplicateDropped,
    Event,
    HelloReceived,
    MessageReceived,
    MessageRefused,
    Outgoing,
    PeerBusy,
    PeerLeft,
    PeerLost,
    SessionOpened,
)
from agentwire.wire.fields import MAX_U32, TYPE_OF
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
    Role,
    Welcome,
)

UNKNOWN_RUN = bytes(16)
"""Run id in the Hello of a peer that does not know the run it joins."""
MAX_GAP = 65_536
"""A sequence number further ahead than this is damage or malice, not loss."""


class Side(StrEnum):
    PEER = "peer"  # an agent or a client: says Hello first
    BROKER = "broker"


class State(StrEnum):
    START = "start"  # nothing sent or received
    GREETING = "greeting"  # Hello has crossed, Welcome has not
    OPEN = "open"
    CLOSED = "closed"  # nothing more is sent, and what arrives is ignored


class Direction(StrEnum):
    SEND = "send"
    RECEIVE = "receive"


_T = MessageType
_S, _R = Direction.SEND, Direction.RECEIVE

_GOODBYE = {
    (state, direction, _T.GOODBYE): State.CLOSED
    for state in (State.GREETING, State.OPEN)
    for direction in Direction
}
TRANSITIONS: Mapping[Side, Mapping[tuple[State, Direction, MessageType], State]] = {
    Side.PEER: {
        (State.START, _S, _T.HELLO): State.GREETING,
        (State.GREETING, _R, _T.WELCOME): State.OPEN,
        (State.GREETING, _R, _T.NACK): State.CLOSED,
        **_GOODBYE,
    },
    Side.BROKER: {
        (State.START, _R, _T.HELLO): State.GREETING,
        (State.START, _S, _T.NACK): State.CLOSED,  # answers a first message that is no Hello
        (State.GREETING, _S, _T.WELCOME): State.OPEN,
        (State.GREETING, _S, _T.NACK): State.CLOSED,
        **_GOODBYE,
    },
}
"""All steps between states. Messages in ``MAY_SEND`` keep an open session open."""

_BOTH = frozenset({_T.NACK, _T.CREDIT, _T.PING, _T.PONG, _T.GOODBYE})
MAY_SEND: Mapping[tuple[Side, Role], frozenset[MessageType]] = {
    (Side.PEER, Role.AGENT): _BOTH
    | {_T.HELLO, _T.PROGRESS, _T.OFFER, _T.ACCEPT, _T.SOFT, _T.TEXT, _T.RESULT, _T.PIECE},
    (Side.PEER, Role.CLIENT): _BOTH | {_T.DEFINE, _T.ENCODE, _T.TEXT, _T.CANCEL},
    (Side.BROKER, Role.AGENT): _BOTH
    | {_T.DEFINE, _T.OFFER, _T.ACCEPT, _T.ENCODE, _T.SOFT, _T.TEXT, _T.CANCEL},
    (Side.BROKER, Role.CLIENT): _BOTH | {_T.RESULT, _T.PIECE},
}
"""What a side may send in an open session with (or as) a peer of this role."""

# The session itself acts on these; all other messages of an open session go to the layer above.
_OWN = {_T.HELLO, _T.WELCOME, _T.PING, _T.PONG, _T.GOODBYE}


@dataclass(frozen=True, slots=True)
class Timing:
    """Time limits of a session, in milliseconds. The broker's Welcome announces its own.

    Attributes:
        ping_ms: a Ping is sent after this long without anything received.
        liveness_ms: the other side is lost after this long without anything received.
        handshake_ms: Hello and Welcome must have crossed within this time.
    """

    ping_ms: int = 1_000
    liveness_ms: int = 15_000
    handshake_ms: int = 30_000


def step(
    side: Side, role: Role | None, state: State, direction: Direction, kind: MessageType
) -> State | None:
    """The state after this message crosses; None if it is not allowed.

    Args:
        side, state: of the session that asks.
        role: role of the session's peer; None until its Hello is known.
    """
    after = TRANSITIONS[side].get((state, direction, kind))
    if after is None and state is State.OPEN and role is not None:
        other = Side.BROKER if side is Side.PEER else Side.PEER
        sender = side if direction is Direction.SEND else other
        if kind in MAY_SEND[sender, role]:
            return State.OPEN
    return after


class _Refusal(Exception):
    """The received message is not allowed; becomes ``MessageRefused`` and a Nack."""

    def __init__(self, code: NackCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _busy_ms(since: float, now: float) -> int:
    """At least 1, which means busy; clamped, so that an odd clock does not make ``tick`` raise."""
    return min(max(1, int((now - since) * 1000)), MAX_U32)


class Session:
    """One end of a connection between a peer and the broker.

    Args:
        run: 16-byte id of the run; messages of another run are refused. A peer that does not
            know it passes ``UNKNOWN_RUN`` and learns it from the Welcome.
        epoch: incarnation of this end, sent with every message.
        hello: peer side: the message that ``open`` sends; also fixes the role.
        timing: time limits. A peer takes ping and liveness from the broker's Welcome instead.
        keyed: broker side: the transport identified the peer by its key, so that its Hello may
            leave the run open.
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
        keyed: bool = False,
    ) -> None:
        if (side is Side.PEER) != (hello is not None):
            raise LocalProtocolError(
                "A peer's session needs its Hello; a broker's session receives one.",
                hint="Pass hello= for a peer only.",
            )
        self.side = side
        self.state = State.START
        self.hello = hello
        self.remote_epoch: int | None = None
        self.timing = timing or Timing()
        self._run = run
        self._epoch = epoch
        self._keyed = keyed
        self._forwards = side is Side.BROKER
        # Message classes of the open session that mean nothing to the session itself.
        self._plain_in: frozenset[type[Message]] = frozenset()
        self._plain_out: frozenset[type[Message]] = frozenset()
        self.pings = self.pongs = 0  # Pings sent, and Pongs that have answered them
        self._next_out = 0
        self._next_in = 0
        self._undecoded = 0
        self._started = now
        self._received = now  # when something was last received
        self._reported = now  # when busy_ms was last sent

    # -- sending ----------------------------------------------------------------------------

    def open(self, now: float) -> list[bytes | memoryview]:
        """Peer: the frames of the Hello that opens the session."""
        if self.hello is None:
            raise LocalProtocolError("The broker sends no Hello.", hint="Wait for HelloReceived.")
        self._started = self._received = now
        return self.send(self.hello, now)

    def welcome(self, now: float) -> list[bytes | memoryview]:
        """Broker: the frames of the Welcome that admits the peer."""
        timing = self.timing
        return self.send(Welcome(PROTOCOL_VERSION, timing.ping_ms, timing.liveness_ms), now)

    def reject(self, code: NackCode, reason: str, now: float) -> list[bytes | memoryview]:
        """Broker: the frames of the Nack that rejects the peer; closes the session."""
        return self.send(Nack(code, reason), now)

    def send(
        self, message: Message, now: float, sealed: Sealed | None = None
    ) -> list[bytes | memoryview]:
        """The frames of a message, numbered. Write them in the order of calls.

        Args:
            sealed: the frames as received, if the message goes on with no change but its origin.

        Raises:
            LocalProtocolError: this side may not send that now, or it does not fit the wire.
                No number is used up.
        """
        after = self.state
        if after is not State.OPEN or type(message) not in self._plain_out:
            after = self._state_after_sending(message)
        envelope = Envelope(self._run, self._next_out, self._epoch)
        if sealed is None:
            frames = encode(message, envelope)
        else:
            frames = reseal(sealed, envelope, getattr(message, "origin", ""))
        self._next_out += 1
        self.state = after
        if isinstance(message, Hello):
            self.hello = message
        elif isinstance(message, Ping | Pong):
            self._reported = now
            self.pings += isinstance(message, Ping)
        return frames

    def _state_after_sending(self, message: Message) -> State:
        self._set_plain_messages()
        kind = TYPE_OF[type(message)]
        after = self._step(Direction.SEND, kind)
        if after is None:
            raise LocalProtocolError(
                f"A {self.side} session in state {self.state} may not send {kind.name}.",
                hint="docs/protocol.md shows what each state allows.",
            )
        if self.state is State.OPEN and isinstance(message, Hello):
            problem = self._second_hello_problem(message)
            if problem:
                raise LocalProtocolError(
                    problem, hint="Send the second Hello when the model is loaded."
                )
        return after

    # -- time -------------------------------------------------------------------------------

    def tick(self, now: float, busy_since: float | None = None) -> tuple[float | None, list[Event]]:
        """Events that are due by now, and the time of the next call (None: never).

        Args:
            busy_since: when this side's compute loop began its batch; None when it is idle.
        """
        events: list[Event] = []
        if self.state is State.CLOSED:
            return None, events
        if self.state is not State.OPEN:
            deadline = self._started + self.timing.handshake_ms / 1000
            if now < deadline:
                return deadline, events
            awaited = "Welcome" if self.hello else "Hello"
            return None, [self._lost(f"no {awaited} within {self.timing.handshake_ms} ms")]
        lost_at = self._received + self.timing.liveness_ms / 1000
        if now >= lost_at:
            return None, [self._lost(f"silent for {self.timing.liveness_ms} ms", silent=True)]
        # A busy side reports even while messages arrive: the progress deadline of the other side
        # must not depend on who else sends.
        busy_ms = 0 if busy_since is None else _busy_ms(busy_since, now)
        quiet_since = self._reported if busy_ms else max(self._received, self._reported)
        ping_at = quiet_since + self.timing.ping_ms / 1000
        if now >= ping_at:
            events.append(Outgoing(self.send(Ping(busy_ms), now)))
            ping_at = now + self.timing.ping_ms / 1000
        return min(lost_at, ping_at), events

    # -- receiving --------------------------------------------------------------------------

    def receive(
        self, frames: Sequence[bytes | memoryview], now: float, busy_since: float | None = None
    ) -> list[Event]:
        """The events of one received message. Never raises, whatever the bytes.

        Args:
            frames: the three frames of one message, without routing frames.
            busy_since: as in ``tick``; a Pong tells how long ago that was.
        """
        if self.state is State.CLOSED:
            return []
        try:
            envelope, message, sealed = unseal(frames)
        except Undecodable as error:
            self._undecoded += 1
            refused = MessageRefused(error.code, str(error), error.wire, error.rows, error.origin)
            return self._refuse(refused, now, self._next_in + self._undecoded - 1)
        if (
            self.state is State.OPEN
            and type(message) in self._plain_in
            and envelope.seq == self._next_in
            and envelope.epoch == self.remote_epoch
            and envelope.run == self._run
        ):  # the usual case: the next message for the layer above
            self._undecoded, self._next_in, self._received = 0, envelope.seq + 1, now
            return [MessageReceived(message, envelope, sealed if self._forwards else None)]
        self._set_plain_messages()
        try:
            self._check_envelope(envelope, message)
            if envelope.seq < self._next_in:
                # No sign of life: a broker that no longer knows this connection answers as well.
                return [
                    self._rejected_by_broker(envelope, message) or DuplicateDropped(envelope.seq)
                ]
            missing = envelope.seq - self._next_in - self._undecoded
            if missing > 0 and self.state is not State.START:
                # Work, credit or an answer is missing, and nobody can say which.
                return [self._lost(f"{missing} messages were lost")]
            # The numbers of refused messages are no gap.
            self._undecoded, self._next_in, self._received = 0, envelope.seq + 1, now
            return self._accept(message, envelope, sealed, now, busy_since)
        except _Refusal as error:
            refused = MessageRefused(
                error.code,
                str(error),
                getattr(message, "wire", ""),
                getattr(message, "rows", ()),
                getattr(message, "origin", ""),
            )
            answer = not isinstance(message, Nack)
            return self._refuse(refused, now, envelope.seq, answer=answer)

    def _check_envelope(self, envelope: Envelope, message: Message) -> None:
        if self.state is State.START and isinstance(message, Hello) and envelope.seq:
            raise _Refusal(NackCode.MALFORMED, f"the first Hello is number 0, not {envelope.seq}")
        if envelope.run != self._run and not self._learns_run(envelope.run, message):
            raise _Refusal(NackCode.UNAUTHORIZED, "the message belongs to another run")
        # The first message in a direction fixes the incarnation.
        if self.remote_epoch is not None and envelope.epoch != self.remote_epoch:
            raise _Refusal(
                NackCode.STALE_EPOCH,
                f"epoch {envelope.epoch}, but this session is with epoch {self.remote_epoch}",
            )
        if envelope.seq - self._next_in > MAX_GAP:
            raise _Refusal(
                NackCode.MALFORMED, f"sequence {envelope.seq} is too far from {self._next_in}"
            )

    def _learns_run(self, run: bytes, message: Message) -> bool:
        """Whether a run id may differ because one side does not know the run yet."""
        if self.side is Side.BROKER:
            first = self.state is State.START and isinstance(message, Hello)
            return first and self._keyed and run == UNKNOWN_RUN
        learns = self._run == UNKNOWN_RUN and self.state is State.GREETING
        if learns and isinstance(message, Welcome):
            self._run = run
        return learns

    def _rejected_by_broker(self, envelope: Envelope, message: Message) -> PeerLost | None:
        """The end of a peer's session after the transport reconnected by itself.

        To the broker the new connection is unknown. It answers a first message that is no Hello
        with a Nack numbered 0, the number that the Welcome had.
        """
        if self.side is Side.BROKER or envelope.seq != 0 or not isinstance(message, Nack):
            return None
        return self._lost(f"the broker does not know this connection: {message.reason}")

    def _accept(
        self,
        message: Message,
        envelope: Envelope,
        sealed: Sealed,
        now: float,
        busy_since: float | None,
    ) -> list[Event]:
        kind = TYPE_OF[type(message)]
        after = self._step(Direction.RECEIVE, kind)
        if after is None:
            raise _Refusal(
                NackCode.UNAUTHORIZED, f"{kind.name} is not allowed in state {self.state}"
            )
        if self.state is not State.OPEN or after is not State.OPEN:
            self.remote_epoch = envelope.epoch
            return self._change_state(message, envelope, after, now)
        if isinstance(message, Ping | Pong):
            events: list[Event] = [PeerBusy(*self._other_end(), message.busy_ms)]
            if isinstance(message, Pong):
                self.pongs = min(self.pings, self.pongs + 1)
            else:
                busy_ms = 0 if busy_since is None else _busy_ms(busy_since, now)
                events.append(Outgoing(self.send(Pong(busy_ms), now)))
            return events
        if isinstance(message, Hello):
            problem = self._second_hello_problem(message)
            if problem:
                raise _Refusal(NackCode.UNAUTHORIZED, problem)
            self.hello = message
        return [MessageReceived(message, envelope, sealed if self._forwards else None)]

    def _change_state(
        self, message: Message, envelope: Envelope, after: State, now: float
    ) -> list[Event]:
        match message:
            case Hello():
                if PROTOCOL_VERSION not in message.versions:
                    raise _Refusal(
                        NackCode.VERSION, f"this broker speaks only version {PROTOCOL_VERSION}"
                    )
                self.hello, self.state = message, after
                return [HelloReceived(message, envelope.epoch)]
            case Welcome():
                code, problem = NackCode.MALFORMED, ""
                if message.version not in (self.hello.versions if self.hello else ()):
                    code, problem = NackCode.VERSION, f"version {message.version} was not offered"
                elif message.liveness_ms <= message.ping_ms:
                    problem = "liveness_ms must be above ping_ms"
                if problem:
                    # Nothing can follow, so neither end should wait for the handshake's limit.
                    goodbye = Outgoing(self.send(Goodbye(problem), now))
                    return [goodbye, self._left(problem, code)]
                self.timing = Timing(message.ping_ms, message.liveness_ms, self.timing.handshake_ms)
                self.state, self._reported = after, now
                return [SessionOpened(message)]
            case Nack():
                return [self._left(message.reason, message.code)]
            case Goodbye():
                return [self._left(message.reason)]
        raise _Refusal(NackCode.UNAUTHORIZED, "the session is not open")

    def _second_hello_problem(self, hello: Hello) -> str:
        first = self.hello
        if first is None or (hello.name, hello.role) != (first.name, first.role):
            return "a peer cannot change its name or role"
        return "" if hello.model else "a second Hello must name the model"

    def _refuse(
        self, refused: MessageRefused, now: float, number: int, *, answer: bool = True
    ) -> list[Event]:
        events: list[Event] = [refused]
        # A Nack is never answered by a Nack, or two ends could go on for ever.
        if answer and self._step(Direction.SEND, MessageType.NACK) is not None:
            # Without rows only its number says which message it was: they arrive in order.
            reason = refused.reason if refused.rows else f"message {number}: {refused.reason}"
            nack = Nack(refused.code, reason, refused.wire, refused.rows, origin=refused.origin)
            events.append(Outgoing(self.send(nack, now)))
        return events

    # -- both directions --------------------------------------------------------------------

    def _other_end(self) -> tuple[str, int]:
        name = "broker"
        if self.side is Side.BROKER:
            name = self.hello.name if self.hello else ""
        return name, self.remote_epoch or 0

    def _lost(self, reason: str, silent: bool = False) -> PeerLost:
        self.state = State.CLOSED
        return PeerLost(*self._other_end(), reason, silent)

    def _left(self, reason: str, code: NackCode | None = None) -> PeerLeft:
        self.state = State.CLOSED
        return PeerLeft(*self._other_end(), reason, code)

    def _set_plain_messages(self) -> None:
        """Once the session is open, computes which message classes concern the layer above."""
        if self.state is State.OPEN and not self._plain_out:
            self._plain_in = self._plain_messages(Direction.RECEIVE)
            self._plain_out = self._plain_messages(Direction.SEND)

    def _plain_messages(self, direction: Direction) -> frozenset[type[Message]]:
        return frozenset(
            kind
            for kind, number in TYPE_OF.items()
            if number not in _OWN and self._step(direction, number) is State.OPEN
        )

    def _step(self, direction: Direction, kind: MessageType) -> State | None:
        role = self.hello.role if self.hello else None
        return step(self.side, role, self.state, direction, kind)
