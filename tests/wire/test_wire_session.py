"""Pairs of sessions: each receives what the other sends, and time is a number."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import any_message

from agentwire.errors import LocalProtocolError, NackCode
from agentwire.wire import messages as m
from agentwire.wire.codec import decode, encode
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
from agentwire.wire.fields import TYPE_OF
from agentwire.wire.session import (
    MAX_GAP,
    MAY_SEND,
    TRANSITIONS,
    UNKNOWN_RUN,
    Direction,
    Session,
    Side,
    State,
    Timing,
    step,
)

RUN = bytes(range(16))
MODEL = m.ModelIdentity("tiny", "a" * 64, 16, 4, 0.5, "float32", "cpu")
TIMING = Timing(ping_ms=1000, liveness_ms=5000, handshake_ms=8000)
AGENT = m.Hello("llama", m.Role.AGENT, token="5ec7e7")
CLIENT = m.Hello("client", m.Role.CLIENT)
CREDIT = m.Credit("a->b", 4, 1 << 20)


class Pair:
    """A peer and the broker's end of its session, joined without a transport."""

    def __init__(self, hello: m.Hello = AGENT, *, open_: bool = True) -> None:
        self.peer = Session(Side.PEER, run=RUN, epoch=3, now=0.0, hello=hello)
        self.broker = Session(Side.BROKER, run=RUN, epoch=1, now=0.0, timing=TIMING)
        if open_:
            self.broker.receive(self.peer.open(0.0), 0.0)
            self.peer.receive(self.broker.welcome(0.0), 0.0)
            assert self.peer.state is self.broker.state is State.OPEN


def frames_of(events: list[Event]) -> list[list[bytes | memoryview]]:
    return [event.frames for event in events if isinstance(event, Outgoing)]


def messages_of(events: list[Event]) -> list[m.Message]:
    return [decode(frames)[1] for frames in frames_of(events)]


def raw(message: m.Message, seq: int, epoch: int = 3, run: bytes = RUN) -> list[bytes | memoryview]:
    return encode(message, m.Envelope(run, seq, epoch))


# -- handshake ------------------------------------------------------------------------------


def test_hello_and_welcome_open_both_ends() -> None:
    pair = Pair(open_=False)
    assert pair.broker.receive(pair.peer.open(0.0), 0.1) == [HelloReceived(AGENT, epoch=3)]
    assert (pair.peer.state, pair.broker.state) == (State.GREETING, State.GREETING)
    events = pair.peer.receive(pair.broker.welcome(0.2), 0.3)
    assert events == [SessionOpened(m.Welcome(2, 1000, 5000))]
    assert (pair.peer.state, pair.broker.state) == (State.OPEN, State.OPEN)
    # The broker's times hold at both ends.
    assert (pair.peer.timing.ping_ms, pair.peer.timing.liveness_ms) == (1000, 5000)


def test_a_rejected_peer_gets_the_reason_and_both_ends_close() -> None:
    pair = Pair(open_=False)
    pair.broker.receive(pair.peer.open(0.0), 0.0)
    frames = pair.broker.reject(NackCode.UNAUTHORIZED, "wrong token", 0.0)
    assert pair.peer.receive(frames, 0.0) == [
        PeerLeft("broker", 1, "wrong token", NackCode.UNAUTHORIZED)
    ]
    assert (pair.peer.state, pair.broker.state) == (State.CLOSED, State.CLOSED)


def test_a_peer_that_speaks_only_newer_versions_is_refused() -> None:
    pair = Pair(dataclasses.replace(AGENT, versions=(4, 3)), open_=False)
    events = pair.broker.receive(pair.peer.open(0.0), 0.0)
    assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.VERSION
    assert pair.broker.state is State.CLOSED
    closed = pair.peer.receive(frames_of(events)[0], 0.0)
    assert isinstance(closed[0], PeerLeft) and closed[0].code is NackCode.VERSION


def test_a_peer_that_speaks_newer_versions_too_gets_the_common_one() -> None:
    pair = Pair(dataclasses.replace(AGENT, versions=(3, 2)))
    assert pair.peer.state is State.OPEN


@pytest.mark.parametrize(
    ("welcome", "code"),
    [
        (m.Welcome(9, 1000, 5000), NackCode.VERSION),
        (m.Welcome(2, 5000, 5000), NackCode.MALFORMED),
    ],
)
def test_an_invalid_welcome_is_answered_by_goodbye(welcome: m.Welcome, code: NackCode) -> None:
    pair = Pair(open_=False)
    pair.broker.receive(pair.peer.open(0.0), 0.0)
    pair.broker.welcome(0.0)
    events = pair.peer.receive(raw(welcome, 0, epoch=1), 0.0)
    assert isinstance(events[1], PeerLeft) and events[1].code is code
    assert pair.peer.state is State.CLOSED
    assert pair.broker.receive(frames_of(events)[0], 0.0) == [
        PeerLeft("llama", 3, events[1].reason)
    ]


def test_nothing_but_hello_opens_a_session() -> None:
    pair = Pair(open_=False)
    events = pair.broker.receive(raw(m.Ping(), 0), 0.0)
    assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.UNAUTHORIZED
    assert [type(message) for message in messages_of(events)] == [m.Nack]
    assert pair.broker.state is State.CLOSED
    assert pair.broker.receive(raw(AGENT, 1), 0.0) == []


def test_the_second_hello_reaches_the_layer_above() -> None:
    pair = Pair()
    ready = dataclasses.replace(AGENT, model=MODEL)
    assert pair.broker.receive(pair.peer.send(ready, 1.0), 1.0) == [
        MessageReceived(ready, m.Envelope(RUN, 1, 3))
    ]


@pytest.mark.parametrize(
    "hello",
    [
        AGENT,
        dataclasses.replace(AGENT, name="mistral", model=MODEL),
        dataclasses.replace(AGENT, role=m.Role.CLIENT, model=MODEL),
    ],
)
def test_a_second_hello_must_be_the_same_peer_with_a_model(hello: m.Hello) -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        pair.peer.send(hello, 1.0)
    events = pair.broker.receive(raw(hello, 1), 1.0)
    assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.UNAUTHORIZED
    assert pair.broker.hello == AGENT


def test_a_client_sends_hello_once() -> None:
    pair = Pair(CLIENT)
    with pytest.raises(LocalProtocolError, match="HELLO"):
        pair.peer.send(dataclasses.replace(CLIENT, model=MODEL), 1.0)


def test_an_unfinished_handshake_is_lost() -> None:
    pair = Pair(open_=False)
    pair.peer.open(0.0)
    assert pair.peer.tick(29.0) == (30.0, [])
    assert pair.peer.tick(30.0) == (None, [PeerLost("broker", 0, "no Welcome within 30000 ms")])
    assert pair.broker.tick(8.0) == (None, [PeerLost("", 0, "no Hello within 8000 ms")])


# -- who may send what ----------------------------------------------------------------------


@settings(deadline=None)
@given(any_message, st.sampled_from([AGENT, CLIENT]))
def test_each_end_accepts_exactly_what_the_other_may_send(
    message: m.Message, hello: m.Hello
) -> None:
    kind = TYPE_OF[type(message)]
    for side in Side:
        pair = Pair(hello)
        here, there = (pair.peer, pair.broker) if side is Side.PEER else (pair.broker, pair.peer)
        if kind is m.MessageType.HELLO and side is Side.PEER:
            continue
        if kind in MAY_SEND[side, hello.role]:
            events = there.receive(here.send(message, 1.0), 1.0)
            assert not [event for event in events if isinstance(event, MessageRefused)]
            if not isinstance(message, m.Ping | m.Pong | m.Goodbye):
                assert [event.message for event in events] == [message]  # type: ignore[union-attr]
        else:
            with pytest.raises(LocalProtocolError, match=kind.name):
                here.send(message, 1.0)
            epoch = 3 if side is Side.PEER else 1
            other_end = (hello.name, 3) if side is Side.PEER else ("broker", 1)
            refused = there.receive(raw(message, 1, epoch), 1.0)[0]
            assert isinstance(refused, MessageRefused) and refused.code is NackCode.UNAUTHORIZED
            # What was not allowed uses up its number at the receiver, and no more.
            assert there.receive(raw(m.Ping(), 2, epoch), 1.0)[0] == PeerBusy(*other_end, 0)


def test_no_closed_state_leads_anywhere_and_every_state_can_be_reached() -> None:
    for side, table in TRANSITIONS.items():
        assert all(state is not State.CLOSED for state, _, _ in table)
        assert {State.START} | set(table.values()) == set(State)
        for kind in m.MessageType:
            for direction in Direction:
                assert step(side, m.Role.AGENT, State.CLOSED, direction, kind) is None


def test_the_broker_forwards_with_its_own_number_and_epoch() -> None:
    sender, receiver = Pair(), Pair()
    payload = m.Payload(bytes(8), 1, 2, 2)
    soft = m.Soft("a->b", "0" * 64, "1" * 64, (m.Row(b"r" * 16),), payload, origin="client")
    (event,) = sender.broker.receive(sender.peer.send(soft, 1.0), 1.0)
    assert isinstance(event, MessageReceived) and event.sealed is not None
    frames = receiver.broker.send(soft, 1.0, event.sealed)
    (arrived,) = receiver.peer.receive(frames, 1.0)
    assert arrived == MessageReceived(soft, m.Envelope(RUN, 1, 1))
    assert isinstance(arrived, MessageReceived) and arrived.sealed is None  # nobody hands it on


def test_a_message_that_cannot_be_sent_uses_no_number() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        pair.peer.send(m.Credit("a->b", -1, 0), 1.0)
    with pytest.raises(LocalProtocolError):
        pair.peer.send(m.Cancel("a->b", (RUN,)), 1.0)
    events = pair.broker.receive(pair.peer.send(CREDIT, 1.0), 1.0)
    assert events == [MessageReceived(CREDIT, m.Envelope(RUN, 1, 3))]


# -- order, incarnation, run ----------------------------------------------------------------


def test_a_duplicate_is_dropped_without_an_answer() -> None:
    pair = Pair()
    frames = pair.peer.send(CREDIT, 1.0)
    assert isinstance(pair.broker.receive(frames, 1.0)[0], MessageReceived)
    assert pair.broker.receive(frames, 1.0) == [DuplicateDropped(1)]
    assert pair.broker.receive(raw(AGENT, 0), 1.0) == [DuplicateDropped(0)]


def test_a_keyed_peer_learns_the_run_from_the_welcome() -> None:
    for keyed in (True, False):
        peer = Session(Side.PEER, run=UNKNOWN_RUN, epoch=3, now=0.0, hello=AGENT)
        broker = Session(Side.BROKER, run=RUN, epoch=1, now=0.0, keyed=keyed)
        events = broker.receive(peer.open(0.0), 0.0)
        if not keyed:
            assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.UNAUTHORIZED
            closed = peer.receive(frames_of(events)[0], 0.0)
            assert isinstance(closed[0], PeerLeft) and closed[0].code is NackCode.UNAUTHORIZED
            continue
        assert events == [HelloReceived(AGENT, epoch=3)]
        assert isinstance(peer.receive(broker.welcome(0.0), 0.0)[0], SessionOpened)
        envelope, _ = decode(peer.send(CREDIT, 0.0))
        assert envelope.run == RUN
        # The run is fixed from now on, at both ends.
        assert isinstance(
            peer.receive(raw(CREDIT, 1, epoch=1, run=bytes(16)), 0.0)[0], MessageRefused
        )
        assert isinstance(broker.receive(raw(CREDIT, 1, run=bytes(16)), 0.0)[0], MessageRefused)


def test_a_repeated_message_is_no_sign_of_life() -> None:
    pair = Pair()
    frames = pair.broker.send(CREDIT, 1.0)
    pair.peer.receive(frames, 1.0)
    assert pair.peer.receive(frames, 5.5) == [DuplicateDropped(1)]
    _, events = pair.peer.tick(6.1)
    assert events == [PeerLost("broker", 1, "silent for 5000 ms", silent=True)]


def test_a_broker_that_does_not_know_the_connection_ends_the_peers_session() -> None:
    pair = Pair()
    stranger = Session(Side.BROKER, run=RUN, epoch=1, now=9.0)
    (nack,) = frames_of(stranger.receive(pair.peer.send(m.Ping(), 9.0), 9.0))
    (lost,) = pair.peer.receive(nack, 9.0)
    assert isinstance(lost, PeerLost) and "does not know" in lost.reason
    assert pair.peer.state is State.CLOSED


def test_a_peer_cannot_end_the_brokers_session_that_way() -> None:
    pair = Pair()
    nack = m.Nack(NackCode.UNAUTHORIZED, "who are you?")
    assert pair.broker.receive(raw(nack, 0), 1.0) == [DuplicateDropped(0)]
    assert pair.broker.state is State.OPEN


def test_a_lost_message_ends_the_session() -> None:
    pair = Pair()
    lost = [pair.peer.send(CREDIT, 1.0) for _ in range(2)]
    events = pair.broker.receive(pair.peer.send(CREDIT, 1.0), 1.0)
    assert events == [PeerLost("llama", 3, "2 messages were lost")]
    assert pair.broker.state is State.CLOSED
    assert pair.broker.receive(lost[0], 1.0) == []


def test_a_number_too_far_ahead_is_refused() -> None:
    pair = Pair()
    events = pair.broker.receive(raw(CREDIT, MAX_GAP + 2), 1.0)
    assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.MALFORMED
    assert isinstance(pair.broker.receive(raw(CREDIT, 1), 1.0)[0], MessageReceived)


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_another_incarnation_is_refused(epoch: int) -> None:
    pair = Pair()
    events = pair.broker.receive(raw(CREDIT, 1, epoch), 1.0)
    assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.STALE_EPOCH
    assert isinstance(pair.broker.receive(raw(CREDIT, 1), 1.0)[0], MessageReceived)


def test_another_run_is_refused() -> None:
    pair = Pair()
    events = pair.broker.receive(raw(CREDIT, 1, run=bytes(16)), 1.0)
    assert isinstance(events[0], MessageRefused) and events[0].code is NackCode.UNAUTHORIZED


# -- refusals -------------------------------------------------------------------------------


def test_a_damaged_message_is_answered_and_leaves_no_gap() -> None:
    pair = Pair()
    row = m.Row(b"r" * 16)
    text = m.Text("a->b", "0" * 64, (row,), ("hi",), origin="client")
    header, rows, _ = pair.peer.send(text, 1.0)
    events = pair.broker.receive([header, rows, b"ho"], 1.0)
    assert events[0] == MessageRefused(
        NackCode.CHECKSUM, "rows and body do not match the checksum", "a->b", (), "client"
    )
    [nack] = messages_of(events)
    assert isinstance(nack, m.Nack) and (nack.code, nack.wire) == (NackCode.CHECKSUM, "a->b")
    assert pair.peer.receive(frames_of(events)[0], 1.0) == [
        MessageReceived(nack, m.Envelope(RUN, 1, 1))
    ]
    assert isinstance(pair.broker.receive(pair.peer.send(CREDIT, 1.0), 1.0)[0], MessageReceived)


def test_a_refusal_names_the_requests_of_the_message() -> None:
    pair = Pair(CLIENT)
    row = m.Row(b"r" * 16)
    soft = m.Soft("a->b", "0" * 64, "1" * 64, (row,), m.Payload(bytes(4), 1, 1, 2))
    refused = pair.broker.receive(raw(soft, 1), 1.0)[0]
    assert isinstance(refused, MessageRefused)
    assert (refused.wire, refused.rows) == ("a->b", (row,))


def test_the_nack_to_a_refused_message_names_its_client() -> None:
    # Refused by its checksum, by its epoch, and by the sender's role: each time the client that
    # waits for these rows can be told.
    row = m.Row(b"r" * 16)
    text = m.Text("a->b", "0" * 64, (row,), ("hi",), origin="client")
    pair = Pair()
    header, rows, _ = pair.peer.send(text, 1.0)
    encode_to_agent = m.Encode(
        "a->b", "0" * 64, m.Channel.SOFT, "text", (row,), ("hi",), origin="client"
    )
    for frames, code in (
        ([header, rows, b"ho"], NackCode.CHECKSUM),
        (raw(text, 2, epoch=9), NackCode.STALE_EPOCH),
        (raw(encode_to_agent, 2), NackCode.UNAUTHORIZED),
    ):
        [nack] = messages_of(pair.broker.receive(frames, 1.0))
        assert isinstance(nack, m.Nack)
        assert (nack.code, nack.wire, nack.origin) == (code, "a->b", "client")


def test_a_nack_is_never_answered_by_a_nack() -> None:
    pair = Pair()
    events = pair.broker.receive(raw(m.Nack(NackCode.CLOSING, "bye"), 1, epoch=9), 1.0)
    assert [type(event) for event in events] == [MessageRefused]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=4), st.sampled_from(["start", "open", "closed"]))
def test_receive_never_raises(frames: list[bytes], state: str) -> None:
    pair = Pair(open_=state != "start")
    if state == "closed":
        pair.broker.send(m.Goodbye(), 0.0)
    for end in (pair.broker, pair.peer):
        for event in end.receive(frames, 1.0):
            assert isinstance(event, MessageRefused | Outgoing)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["start", "greeting", "open"]),
    st.sampled_from([AGENT, CLIENT]),
    st.lists(
        st.tuples(
            any_message, st.integers(0, 5), st.integers(0, 3), st.sampled_from([RUN, b"x" * 16])
        ),
        max_size=6,
    ),
)
def test_valid_messages_at_the_wrong_time_never_raise(
    state: str, hello: m.Hello, steps: list[tuple[m.Message, int, int, bytes]]
) -> None:
    pair = Pair(hello, open_=state == "open")
    if state == "greeting":
        pair.broker.receive(pair.peer.open(0.0), 0.0)
    for now, (message, seq, epoch, run) in enumerate(steps):
        for end in (pair.peer, pair.broker):
            before = end.state
            events = end.receive(raw(message, seq, epoch, run), float(now), busy_since=now + 1.0)
            assert before is not State.CLOSED or events == []
            end.tick(float(now), busy_since=-1e12)


# -- liveness -------------------------------------------------------------------------------


def test_a_quiet_session_pings_and_any_traffic_counts() -> None:
    pair = Pair()
    assert pair.peer.tick(0.5) == (1.0, [])
    pair.peer.receive(pair.broker.send(CREDIT, 0.8), 0.8)
    assert pair.peer.tick(1.0) == (1.8, [])
    deadline, events = pair.peer.tick(1.8)
    assert messages_of(events) == [m.Ping(0)]
    assert deadline == 2.8
    answer = pair.broker.receive(frames_of(events)[0], 1.9, busy_since=1.8295)
    assert answer[0] == PeerBusy("llama", 3, 0)
    assert messages_of(answer) == [m.Pong(70)]
    assert pair.peer.receive(frames_of(answer)[0], 2.0) == [PeerBusy("broker", 1, 70)]
    assert pair.peer.tick(2.0) == (3.0, [])


def test_a_silent_peer_is_lost_once() -> None:
    pair = Pair()
    pinged = [pair.broker.tick(float(second))[1] for second in range(1, 5)]
    assert [messages_of(events) for events in pinged] == [[m.Ping(0)]] * 4
    assert pair.broker.tick(5.0) == (
        None,
        [PeerLost("llama", 3, "silent for 5000 ms", silent=True)],
    )
    assert pair.broker.tick(9.0) == (None, [])
    assert pair.broker.receive(pair.peer.send(CREDIT, 9.0), 9.0) == []


def test_the_next_tick_is_the_earlier_of_ping_and_loss() -> None:
    pair = Pair()
    pair.broker.tick(4.5)
    assert pair.broker.tick(4.6) == (5.0, [])


def test_a_busy_side_reports_even_while_messages_arrive() -> None:
    pair = Pair()
    for tenth in range(1, 10):
        pair.peer.receive(pair.broker.send(CREDIT, tenth / 10), tenth / 10)
        assert pair.peer.tick(tenth / 10, busy_since=0.05)[1] == []
    pair.peer.receive(pair.broker.send(CREDIT, 1.0), 1.0)
    assert messages_of(pair.peer.tick(1.0, busy_since=0.05)[1]) == [m.Ping(950)]
    assert pair.peer.tick(1.1, busy_since=0.05) == (2.0, [])


def test_refused_messages_are_no_sign_of_life() -> None:
    pair = Pair()
    for second in range(1, 5):
        pair.broker.receive([b"", b"", b""], float(second))
        pair.broker.receive(raw(CREDIT, 1, epoch=2), float(second))
    assert isinstance(pair.broker.tick(5.0)[1][0], PeerLost)


# -- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
def test_goodbye_closes_both_ends(side: Side) -> None:
    pair = Pair()
    here, there = (pair.peer, pair.broker) if side is Side.PEER else (pair.broker, pair.peer)
    other_end = ("llama", 3) if side is Side.PEER else ("broker", 1)
    left = there.receive(here.send(m.Goodbye("done"), 1.0), 1.0)
    assert left == [PeerLeft(*other_end, "done")]
    for end in (here, there):
        assert end.state is State.CLOSED
        assert end.tick(99.0) == (None, [])
        with pytest.raises(LocalProtocolError, match="closed"):
            end.send(m.Ping(), 2.0)


def test_a_peer_needs_its_hello_and_the_broker_has_none() -> None:
    with pytest.raises(LocalProtocolError):
        Session(Side.PEER, run=RUN, epoch=0, now=0.0)
    with pytest.raises(LocalProtocolError):
        Session(Side.BROKER, run=RUN, epoch=0, now=0.0, hello=AGENT)
    with pytest.raises(LocalProtocolError):
        Session(Side.BROKER, run=RUN, epoch=0, now=0.0).open(0.0)
