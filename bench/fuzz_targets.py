"""Targets of ``fuzz.py``: a module of its own, whose imports the fuzzer instruments."""

from __future__ import annotations

import struct
from copy import copy

from agentwire.errors import LocalProtocolError, RemoteProtocolError
from agentwire.wire import messages as m
from agentwire.wire.codec import decode, encode, unseal
from agentwire.wire.events import Outgoing
from agentwire.wire.session import Session, Side, State

STEPS = 48
"""Limit of one session: a long input would be thousands of pings and take a second."""
RUN = bytes(range(16))
HELLO = m.Hello("llama", m.Role.AGENT, token="c0ffee")


def frames_of(data: bytes) -> list[bytes]:
    """Frames, each after its length (uint16); the last one may be short."""
    frames: list[bytes] = []
    while data and len(frames) < 5:
        if len(data) < 2:
            break
        (size,) = struct.unpack_from("<H", data)
        frames.append(data[2 : 2 + size])
        data = data[2 + size :]
    return frames


def fuzz_codec(data: bytes) -> None:
    """What can be decoded must survive a round trip."""
    try:
        envelope, message, _ = unseal(frames_of(data))
    except RemoteProtocolError:
        return
    frames = encode(message, envelope)
    again_envelope, again = decode(frames)
    if again_envelope != envelope or encode(again, envelope) != frames:
        raise AssertionError("a message does not survive a round trip")


def pair(*, opened: bool) -> tuple[Session, Session]:
    """A peer's end and the broker's."""
    peer = Session(Side.PEER, run=RUN, epoch=1, now=0.0, hello=HELLO)
    broker = Session(Side.BROKER, run=RUN, epoch=1, now=0.0)
    if opened:
        broker.receive(peer.open(0.0), 0.0)
        peer.receive(broker.welcome(0.0), 0.0)
    return peer, broker


CLOSED, OPEN = pair(opened=False), pair(opened=True)
"""Copied for each input, because a handshake would be half of its work."""


def fuzz_session(data: bytes) -> None:
    """A broker's and a peer's end; each byte selects the next action."""
    peer, broker = map(copy, CLOSED if data[:1] == b"\0" else OPEN)
    now = 0.0
    rest = data[1:]
    for _ in range(STEPS):
        if not rest:
            return
        action, rest = rest[0], rest[1:]
        side = peer if action & 1 else broker
        other = broker if action & 1 else peer
        now += (action >> 4) / 4
        if action & 2:
            size = rest[0] * 4 if rest else 0
            frames, rest = frames_of(rest[1 : 1 + size]), rest[1 + size :]
            events = side.receive(frames, now)
        elif action & 4:
            events = side.tick(now)[1]
        else:
            try:
                events = [Outgoing(side.send(m.Ping(action), now))]
            except LocalProtocolError:
                continue
        for event in events:
            if isinstance(event, Outgoing):
                other.receive(event.frames, now)
        if peer.state is State.CLOSED and broker.state is State.CLOSED:
            return


TARGETS = {"codec": fuzz_codec, "session": fuzz_session}
