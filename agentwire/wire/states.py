"""The states of a session, every step between them, and who may send what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agentwire.wire.fields import TYPE_OF
from agentwire.wire.messages import Message, MessageType, Role


class Side(StrEnum):
    PEER = "peer"  # an agent or a client: says Hello first
    BROKER = "broker"


class State(StrEnum):
    START = "start"  # nothing sent or received
    GREETING = "greeting"  # Hello has crossed, Welcome has not
    OPEN = "open"
    CLOSED = "closed"  # nothing more is sent, and what comes is ignored


class Direction(StrEnum):
    SEND = "send"
    RECEIVE = "receive"


_T = MessageType
_S, _R = Direction.SEND, Direction.RECEIVE

TRANSITIONS: Mapping[Side, Mapping[tuple[State, Direction, MessageType], State]] = {
    Side.PEER: {
        (State.START, _S, _T.HELLO): State.GREETING,
        (State.GREETING, _R, _T.WELCOME): State.OPEN,
        (State.GREETING, _R, _T.NACK): State.CLOSED,
        (State.GREETING, _R, _T.GOODBYE): State.CLOSED,
        (State.GREETING, _S, _T.GOODBYE): State.CLOSED,
        (State.OPEN, _R, _T.GOODBYE): State.CLOSED,
        (State.OPEN, _S, _T.GOODBYE): State.CLOSED,
    },
    Side.BROKER: {
        (State.START, _R, _T.HELLO): State.GREETING,
        (State.START, _S, _T.NACK): State.CLOSED,  # the answer to what was no Hello
        (State.GREETING, _S, _T.WELCOME): State.OPEN,
        (State.GREETING, _S, _T.NACK): State.CLOSED,
        (State.GREETING, _R, _T.GOODBYE): State.CLOSED,
        (State.GREETING, _S, _T.GOODBYE): State.CLOSED,
        (State.OPEN, _R, _T.GOODBYE): State.CLOSED,
        (State.OPEN, _S, _T.GOODBYE): State.CLOSED,
    },
}
"""Every step from one state to another. An open session also stays open for ``MAY_SEND``."""

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


@dataclass(frozen=True, slots=True)
class Timing:
    """Time limits of a session, in milliseconds. The broker's are what a Welcome announces.

    Attributes:
        ping_ms: a Ping goes out after this long without anything received.
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
        role: what the peer of the session is; None until its Hello is known.
    """
    after = TRANSITIONS[side].get((state, direction, kind))
    if after is None and state is State.OPEN and role is not None:
        other = Side.BROKER if side is Side.PEER else Side.PEER
        talker = side if direction is Direction.SEND else other
        if kind in MAY_SEND[talker, role]:
            return State.OPEN
    return after


def plain_messages(
    side: Side, role: Role | None
) -> tuple[frozenset[type[Message]], frozenset[type[Message]]]:
    """Message classes that keep an open session open and concern the layer above alone.

    Returns:
        Those that this side may receive, and those that it may send.
    """
    own = {_T.HELLO, _T.WELCOME, _T.PING, _T.PONG, _T.GOODBYE}

    def crossing(direction: Direction) -> frozenset[type[Message]]:
        return frozenset(
            kind
            for kind, number in TYPE_OF.items()
            if number not in own and step(side, role, State.OPEN, direction, number) is State.OPEN
        )

    return crossing(Direction.RECEIVE), crossing(Direction.SEND)
