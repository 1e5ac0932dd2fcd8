"""The broker's decisions about peers: admission, requests, and what each may send."""

from __future__ import annotations

import pytest
from bus_messages import (
    TASK,
    TOKEN,
    WIDE,
    WIRE,
    bridge,
    encode,
    hello,
    model,
    result,
    rows,
    soft,
    text,
)
from bus_router import Bus, as_from, codes, credit, send

from agentwire.bus import events as e
from agentwire.bus import instructions as act
from agentwire.errors import NackCode
from agentwire.wire import messages as m
from agentwire.wire.events import HelloReceived, MessageRefused

# -- admission ----------------------------------------------------------------------------


def test_an_expected_agent_is_admitted_and_ready_after_its_second_hello() -> None:
    bus = Bus()
    assert bus.expect("llama", 7) == []
    assert bus.arrive("llama", 7) == [
        act.Admit(b"llama"),
        act.Emit(e.PeerConnected("llama", 7)),
    ]
    assert bus.say("llama", m.Progress("load", 0.5)) == [
        act.Emit(e.PeerProgress("llama", 7, "load", 0.5))
    ]
    assert bus.say("llama", hello("llama", ready=True)) == [
        act.Emit(e.PeerReady("llama", 7, model("llama"))),
        send("llama", credit()),  # it may queue work for mistral
    ]


def test_an_agent_that_is_ready_at_once_needs_one_hello() -> None:
    bus = Bus()
    bus.expect("mistral", 1)
    assert bus.connect("m", 1, hello("mistral", ready=True)) == [
        act.Admit(b"m"),
        act.Emit(e.PeerConnected("mistral", 1)),
        act.Emit(e.PeerReady("mistral", 1, model("mistral"))),
    ]


def test_a_client_is_granted_the_room_of_its_queues() -> None:
    assert Bus().arrive("client") == [
        act.Admit(b"client"),
        act.Emit(e.PeerConnected("client", 1)),
        send("client", credit("@llama")),
        send("client", credit("@mistral")),
        send("client", credit(WIRE)),
    ]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (HelloReceived(hello("llama", token="guess"), 1), NackCode.UNAUTHORIZED),
        (HelloReceived(hello("llama", token=""), 1), NackCode.UNAUTHORIZED),
        (HelloReceived(hello("llama", token="\udcff"), 1), NackCode.UNAUTHORIZED),
        (HelloReceived(hello("stranger"), 1), NackCode.UNAUTHORIZED),
        (HelloReceived(hello("llama"), 1), NackCode.STALE_EPOCH),
        (HelloReceived(hello("mistral"), 2), NackCode.STALE_EPOCH),
        (HelloReceived(hello("mistral"), 9), NackCode.UNAUTHORIZED),
        (HelloReceived(m.Hello("llama", m.Role.CLIENT, TOKEN), 1), NackCode.UNAUTHORIZED),
        (HelloReceived(m.Hello("me", m.Role.BROKER, TOKEN), 1), NackCode.UNAUTHORIZED),
    ],
)
def test_peers_that_are_not_admitted(event: HelloReceived, code: NackCode) -> None:
    bus = Bus()
    bus.expect("mistral", 3)
    out = bus.event("x", event)
    assert codes(out) == [code]
    assert [type(i) for i in out] == [act.Reject]
    assert bus.router.counters == {f"refused.{code}": 1}
    assert bus.router.gauges()["peers"] == 0


def test_a_wrong_token_learns_nothing_about_who_is_expected() -> None:
    bus = Bus()
    answers = {
        str(bus.connect("x", epoch, hello(name, token="guess")))
        for name in ("llama", "stranger", "client")
        for epoch in (1, 2)
    }
    assert len(answers) == 1


def test_clients_are_bounded() -> None:
    bus = Bus()
    bus.join("client", "client2")
    assert codes(bus.arrive("client3")) == [NackCode.OVERLOADED]


def test_a_newer_incarnation_replaces_the_older() -> None:
    bus = Bus()
    bus.join("mistral")
    bus.expect("mistral", 2)
    reason = "replaced by epoch 2"
    assert bus.arrive("mistral", 2, id="new") == [
        send("mistral", m.Nack(NackCode.STALE_EPOCH, reason)),
        act.Disconnect(b"mistral"),
        act.Emit(e.PeerLost("mistral", 1, reason)),
        act.Admit(b"new"),
        act.Emit(e.PeerConnected("mistral", 2)),
    ]
    assert bus.say("mistral", result(1)) == []
    assert bus.router.counters["dropped.unknown_peer"] == 1
    assert codes(bus.arrive("mistral", 1)) == [NackCode.STALE_EPOCH]


def test_a_connected_incarnation_cannot_connect_twice() -> None:
    bus = Bus()
    bus.join("mistral", "client")
    assert codes(bus.arrive("mistral", 1, id="thief")) == [NackCode.STALE_EPOCH]
    assert codes(bus.arrive("client", 1, id="thief")) == [NackCode.STALE_EPOCH]


def test_a_lost_incarnation_does_not_come_back() -> None:
    bus = Bus()
    bus.join("mistral")
    bus.lose("mistral", "silent")
    assert codes(bus.arrive("mistral", 1)) == [NackCode.STALE_EPOCH]


def test_the_second_hello_is_checked() -> None:
    bus = Bus()
    bus.join("llama")
    assert codes(bus.say("llama", hello("llama", ready=True))) == [NackCode.UNAUTHORIZED]
    bus.expect("mistral", 1)
    bus.arrive("mistral")
    assert codes(bus.say("mistral", hello("mistral"))) == [NackCode.MALFORMED]
    forged = hello("mistral", ready=True, token="guess")
    assert codes(bus.say("mistral", forged)) == [NackCode.UNAUTHORIZED]


# -- one request --------------------------------------------------------------------------


def test_one_request_from_client_to_result() -> None:
    bus = Bus().open()
    bus.say("llama", WIDE)
    bus.say("mistral", WIDE)
    assert bus.say("client", encode(1, 2)) == [send("llama", as_from(encode(1, 2)))]
    assert bus.say("llama", soft(1, 2)) == [send("mistral", soft(1, 2))]
    assert bus.say("mistral", result(1)) == [send("client", result(1))]
    refused = m.Nack(NackCode.BAD_PAYLOAD, "NaN", WIRE, rows(2), origin="client")
    assert bus.say("mistral", refused) == [send("client", refused)]
    counters = bus.router.counters
    assert counters == {"forwarded": 2, "results": 1, "nacked.bad_payload": 1}


def test_a_direct_wire_leads_to_one_agent() -> None:
    bus = Bus(agents=["gemma"])
    bus.join("gemma", "client")
    bus.say("client", m.Define(TASK))
    bus.say("gemma", credit("@gemma"))
    work = text(1, wire="@gemma")
    assert bus.say("client", work) == [send("gemma", as_from(work))]
    answer = result(1, wire="@gemma")
    assert bus.say("gemma", answer) == [send("client", answer)]


def test_origin_cannot_be_forged() -> None:
    bus = Bus().open()
    bus.join("client2")
    bus.say("llama", WIDE)
    forged = encode(1, origin="client2")
    assert bus.say("client", forged) == [send("llama", as_from(encode(1), "client"))]


@pytest.mark.parametrize("origin", ["", "nobody", "llama"])
def test_messages_for_no_connected_client_are_dropped(origin: str) -> None:
    bus = Bus().open()
    bus.say("mistral", WIDE)
    assert bus.say("mistral", result(1, origin=origin)) == []
    nack = m.Nack(NackCode.MODEL_ERROR, "", WIRE, rows(1), origin=origin)
    assert bus.say("mistral", nack) == []
    for i in range(2):  # and gives the sender its credit back, in halves of the window
        out = bus.say("llama", soft(1, origin=origin))
        assert out == ([] if i == 0 else [send("llama", m.Credit(WIRE, 2, 128))])
    assert bus.router.counters["dropped.orphan"] == 4


# -- what each may send -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ("llama", encode(1)),
        ("client", soft(1)),
        ("client", encode(1, wire="@llama")),
        ("client", text(1, wire=WIRE)),
        ("mistral", soft(1)),
        ("mistral", text(1, wire=WIRE, origin="client")),
        ("llama", text(1, wire="@mistral", origin="client")),
        ("llama", result(1)),
        ("mistral", result(1, wire="@llama")),
        ("client", result(1)),
        ("client", credit()),
        ("llama", credit("@mistral")),
        ("mistral", m.Offer(WIRE, bridge())),
        ("llama", m.Accept(WIRE, "b" * 64)),
        ("client", m.Offer(WIRE, bridge())),
        ("llama", m.Define(TASK)),
        ("llama", m.Cancel(WIRE, (bytes(16),))),
        ("client", m.Progress("load", 0.1)),
        ("client", hello("client")),
        ("client", m.Welcome(1, 1, 2)),
    ],
)
def test_messages_that_a_peer_may_not_send_are_refused(peer: str, message: m.Message) -> None:
    bus = Bus().open()
    (out,) = bus.say(peer, message)
    assert isinstance(out, act.Send)
    assert isinstance(out.message, m.Nack)
    assert (out.peer, out.message.code) == (peer.encode(), NackCode.UNAUTHORIZED)
    assert out.message.rows == getattr(message, "rows", ())  # so that its requests end
    assert bus.router.counters == {"refused.unauthorized": 1}


@pytest.mark.parametrize(
    "message", [soft(1), result(1), credit(), m.Offer(WIRE, bridge()), m.Accept(WIRE, "b" * 64)]
)
@pytest.mark.parametrize("agent", ["llama", "mistral"])
def test_an_agent_that_is_not_ready_cannot_work(agent: str, message: m.Message) -> None:
    bus = Bus()
    bus.join("client")
    bus.say("client", m.Define(TASK))
    bus.expect(agent, 1)
    bus.arrive(agent)
    assert codes(bus.say(agent, message)) == [NackCode.UNAUTHORIZED]


def test_an_unknown_wire_is_refused() -> None:
    bus = Bus().open()
    for peer, message in [("client", encode(1, wire="x->y")), ("llama", credit("x->y"))]:
        assert codes(bus.say(peer, message)) == [NackCode.UNKNOWN_WIRE]


def test_nacks_are_never_answered_with_nacks() -> None:
    bus = Bus().open()
    for peer in ("client", "llama", "mistral"):
        for wire in ("", "x->y", "@llama", WIRE):
            nack = m.Nack(NackCode.MALFORMED, "you are wrong", wire)
            assert codes(bus.say(peer, nack)) == []


def test_an_agents_broken_message_ends_its_rows_at_the_client() -> None:
    bus = Bus().open()
    refused = MessageRefused(NackCode.BAD_PAYLOAD, "size", WIRE, rows(1), "client")
    nack = m.Nack(NackCode.BAD_PAYLOAD, "size", WIRE, rows(1), 0, "client")
    assert bus.event("llama", refused) == [send("client", nack)]
    # but a peer cannot end what is not on its own wire, and a client has been answered already
    assert (
        bus.event("llama", MessageRefused(NackCode.CHECKSUM, "", "@mistral", rows(1), "client"))
        == []
    )
    assert bus.event("client", MessageRefused(NackCode.CHECKSUM, "", WIRE, rows(1), "client")) == []
