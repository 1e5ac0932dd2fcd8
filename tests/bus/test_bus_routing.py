"""The broker's decisions: stimuli in, lists of instructions out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from bus_messages import (
    TASK,
    TOKEN,
    WIDE,
    WIRE,
    WIRES,
    bridge,
    encode,
    hello,
    model,
    result,
    rows,
    soft,
    text,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwire.bus import events as e
from agentwire.bus import stimuli as s
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.routing import Router
from agentwire.errors import LocalProtocolError, NackCode
from agentwire.wire import messages as m
from agentwire.wire.codec import Sealed

LIMITS = RoutingLimits(lane_messages=4, lane_bytes=1000, total_bytes=10_000, clients=2, tasks=3)


class Bus:
    """A router, and the identities that stand for its peers."""

    def __init__(self, limits: RoutingLimits = LIMITS, agents: Iterable[str] = ()) -> None:
        self.router = Router(wires=WIRES, token=TOKEN, limits=limits, agents=agents)

    def do(self, stimulus: s.Stimulus, now: float = 0.0) -> list[s.Instruction]:
        return self.router.handle(stimulus, now)

    def say(self, peer: str, message: m.Message, now: float = 0.0) -> list[s.Instruction]:
        return self.do(s.Said(peer.encode(), message), now)

    def arrive(self, name: str, epoch: int = 1, *, id: str = "") -> list[s.Instruction]:
        return self.do(s.Arrived((id or name).encode(), epoch, hello(name)))

    def join(self, *names: str, epoch: int = 1, id: str = "") -> None:
        """Agents arrive and are ready; clients arrive."""
        for name in names:
            if name.startswith("client"):
                self.arrive(name, epoch, id=id)
            else:
                self.do(s.Expect(name, epoch))
                self.arrive(name, epoch, id=id)
                self.say(id or name, hello(name, ready=True))

    def open(self) -> Bus:
        """All three peers and a task, without credit."""
        self.join("llama", "mistral", "client")
        self.say("client", m.Define(TASK))
        return self


def send(peer: str, message: m.Message) -> s.Send:
    return s.Send(peer.encode(), message)


def credit(wire: str = WIRE, messages: int = 4, bytes: int = 1000) -> m.Credit:
    return m.Credit(wire, messages, bytes)


def as_from(message: m.Message, origin: str = "client") -> m.Message:
    return m.with_origin(message, origin)


def codes(instructions: list[s.Instruction]) -> list[NackCode]:
    return [
        i.code if isinstance(i, s.Reject) else i.message.code
        for i in instructions
        if isinstance(i, s.Reject) or (isinstance(i, s.Send) and isinstance(i.message, m.Nack))
    ]


# -- who is let in --------------------------------------------------------------------------


def test_an_expected_agent_is_let_in_and_becomes_ready_with_its_second_hello() -> None:
    bus = Bus()
    assert bus.do(s.Expect("llama", 7)) == []
    assert bus.arrive("llama", 7) == [
        s.Admit(b"llama"),
        s.Emit(e.PeerConnected("llama", 7)),
    ]
    assert bus.say("llama", m.Progress("load", 0.5)) == [
        s.Emit(e.PeerProgress("llama", 7, "load", 0.5))
    ]
    assert bus.say("llama", hello("llama", ready=True)) == [
        s.Emit(e.PeerReady("llama", 7, model("llama"))),
        send("llama", credit()),  # it may queue work for mistral
    ]


def test_an_agent_that_is_ready_at_once_needs_one_hello() -> None:
    bus = Bus()
    bus.do(s.Expect("mistral", 1))
    assert bus.do(s.Arrived(b"m", 1, hello("mistral", ready=True))) == [
        s.Admit(b"m"),
        s.Emit(e.PeerConnected("mistral", 1)),
        s.Emit(e.PeerReady("mistral", 1, model("mistral"))),
    ]


def test_a_client_is_granted_the_room_of_its_queues() -> None:
    assert Bus().arrive("client") == [
        s.Admit(b"client"),
        s.Emit(e.PeerConnected("client", 1)),
        send("client", credit("@llama")),
        send("client", credit("@mistral")),
        send("client", credit(WIRE)),
    ]


@pytest.mark.parametrize(
    ("arrived", "code"),
    [
        (s.Arrived(b"x", 1, hello("llama", token="guess")), NackCode.UNAUTHORIZED),
        (s.Arrived(b"x", 1, hello("llama", token="")), NackCode.UNAUTHORIZED),
        (s.Arrived(b"x", 1, hello("llama", token="\udcff")), NackCode.UNAUTHORIZED),
        (s.Arrived(b"x", 1, hello("stranger")), NackCode.UNAUTHORIZED),
        (s.Arrived(b"x", 1, hello("llama")), NackCode.STALE_EPOCH),
        (s.Arrived(b"x", 2, hello("mistral")), NackCode.STALE_EPOCH),
        (s.Arrived(b"x", 9, hello("mistral")), NackCode.UNAUTHORIZED),
        (s.Arrived(b"x", 1, m.Hello("llama", m.Role.CLIENT, TOKEN)), NackCode.UNAUTHORIZED),
        (s.Arrived(b"x", 1, m.Hello("me", m.Role.BROKER, TOKEN)), NackCode.UNAUTHORIZED),
    ],
)
def test_who_is_not_let_in(arrived: s.Arrived, code: NackCode) -> None:
    bus = Bus()
    bus.do(s.Expect("mistral", 3))
    out = bus.do(arrived)
    assert codes(out) == [code]
    assert [type(i) for i in out] == [s.Reject]
    assert bus.router.counters == {f"refused.{code}": 1}
    assert bus.router.gauges()["peers"] == 0


def test_a_wrong_token_learns_nothing_about_who_is_expected() -> None:
    bus = Bus()
    answers = {
        str(bus.do(s.Arrived(b"x", epoch, hello(name, token="guess"))))
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
    bus.do(s.Expect("mistral", 2))
    reason = "replaced by epoch 2"
    assert bus.arrive("mistral", 2, id="new") == [
        send("mistral", m.Nack(NackCode.STALE_EPOCH, reason)),
        s.Dismiss(b"mistral"),
        s.Emit(e.PeerLost("mistral", 1, reason)),
        s.Admit(b"new"),
        s.Emit(e.PeerConnected("mistral", 2)),
    ]
    assert bus.say("mistral", result(1)) == []
    assert bus.router.counters["dropped.unknown_peer"] == 1
    assert codes(bus.arrive("mistral", 1)) == [NackCode.STALE_EPOCH]


def test_a_live_incarnation_cannot_be_doubled() -> None:
    bus = Bus()
    bus.join("mistral", "client")
    assert codes(bus.arrive("mistral", 1, id="thief")) == [NackCode.STALE_EPOCH]
    assert codes(bus.arrive("client", 1, id="thief")) == [NackCode.STALE_EPOCH]


def test_a_lost_incarnation_does_not_come_back() -> None:
    bus = Bus()
    bus.join("mistral")
    bus.do(s.Departed(b"mistral", "silent"))
    assert codes(bus.arrive("mistral", 1)) == [NackCode.STALE_EPOCH]


def test_the_second_hello_is_checked() -> None:
    bus = Bus()
    bus.join("llama")
    assert codes(bus.say("llama", hello("llama", ready=True))) == [NackCode.UNAUTHORIZED]
    bus.do(s.Expect("mistral", 1))
    bus.arrive("mistral")
    assert codes(bus.say("mistral", hello("mistral"))) == [NackCode.MALFORMED]
    forged = hello("mistral", ready=True, token="guess")
    assert codes(bus.say("mistral", forged)) == [NackCode.UNAUTHORIZED]


# -- one request ----------------------------------------------------------------------------


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
def test_what_belongs_to_no_live_client_is_dropped(origin: str) -> None:
    bus = Bus().open()
    bus.say("mistral", WIDE)
    assert bus.say("mistral", result(1, origin=origin)) == []
    nack = m.Nack(NackCode.MODEL_ERROR, "", WIRE, rows(1), origin=origin)
    assert bus.say("mistral", nack) == []
    for i in range(2):  # and gives the sender its credit back, in halves of the window
        out = bus.say("llama", soft(1, origin=origin))
        assert out == ([] if i == 0 else [send("llama", m.Credit(WIRE, 2, 128))])
    assert bus.router.counters["dropped.orphan"] == 4


# -- who may say what -----------------------------------------------------------------------


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
    assert isinstance(out, s.Send)
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
    bus.do(s.Expect(agent, 1))
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
    garbled = s.Garbled(b"llama", NackCode.BAD_PAYLOAD, "size", WIRE, rows(1), "client")
    nack = m.Nack(NackCode.BAD_PAYLOAD, "size", WIRE, rows(1), 0, "client")
    assert bus.do(garbled) == [send("client", nack)]
    # but a peer cannot end what is not on its own wire, and a client has been answered already
    assert bus.do(s.Garbled(b"llama", NackCode.CHECKSUM, "", "@mistral", rows(1), "client")) == []
    assert bus.do(s.Garbled(b"client", NackCode.CHECKSUM, "", WIRE, rows(1), "client")) == []


# -- tasks and offers -----------------------------------------------------------------------


def other_task(name: str) -> m.TaskSpec:
    return m.TaskSpec(name, "p", "{text}")


def test_definitions_reach_ready_agents_and_every_later_incarnation() -> None:
    bus = Bus()
    bus.join("llama", "client")
    assert bus.say("client", m.Define(TASK)) == [send("llama", m.Define(TASK))]
    bus.do(s.Expect("mistral", 1))
    assert send("mistral", m.Define(TASK)) not in bus.arrive("mistral")
    assert send("mistral", m.Define(TASK)) in bus.say("mistral", hello("mistral", ready=True))


def test_work_for_an_unknown_task_is_refused_and_its_credit_given_back() -> None:
    bus = Bus()
    bus.join("llama", "client")
    out = [bus.say("client", encode(i)) for i in (1, 2)]
    assert [codes(o) for o in out] == [[NackCode.UNKNOWN_TASK]] * 2
    assert out[1][-1] == send("client", m.Credit(WIRE, 2, 2))


def test_the_task_that_was_not_named_for_longest_is_forgotten_first() -> None:
    bus = Bus().open()
    bus.say("client", m.Define(other_task("a")))
    bus.say("client", m.Define(other_task("b")))
    bus.say("client", encode(1))  # names TASK
    bus.say("client", m.Define(other_task("c")))
    assert bus.router.gauges()["tasks"] == LIMITS.tasks
    bus.join("mistral", epoch=2, id="new")
    bus.do(s.Expect("llama", 2))
    bus.arrive("llama", 2, id="new llama")
    out = bus.say("new llama", hello("llama", ready=True))
    names = [
        i.message.task.name
        for i in out
        if isinstance(i, s.Send) and isinstance(i.message, m.Define)
    ]
    assert names == ["b", "film", "c"]


def test_an_offer_waits_for_the_receiver_and_its_answer_goes_back() -> None:
    bus = Bus()
    bus.join("llama")
    offer, accept = m.Offer(WIRE, bridge()), m.Accept(WIRE, "b" * 64)
    assert bus.say("llama", offer) == []
    bus.do(s.Expect("mistral", 1))
    bus.arrive("mistral")
    assert send("mistral", offer) in bus.say("mistral", hello("mistral", ready=True))
    assert bus.say("mistral", accept) == [
        send("llama", accept),
        s.Emit(e.WireAgreed(WIRE, bridge())),
    ]


def test_a_refused_offer_is_told_to_the_sender_and_the_owner() -> None:
    bus = Bus()
    bus.join("llama", "mistral")
    bus.say("llama", m.Offer(WIRE, bridge()))
    refusal = m.Nack(NackCode.BRIDGE_MISMATCH, "width 16, not 32", WIRE)
    assert bus.say("mistral", refusal) == [
        send("llama", refusal),
        s.Emit(e.WireRefused(WIRE, NackCode.BRIDGE_MISMATCH, "width 16, not 32")),
    ]


def test_offers_follow_the_incarnations() -> None:
    bus = Bus()
    bus.join("llama", "mistral")
    offer = m.Offer(WIRE, bridge())
    assert bus.say("llama", offer) == [send("mistral", offer)]
    # a new receiver is asked again
    bus.do(s.Expect("mistral", 2))
    bus.arrive("mistral", 2, id="m2")
    assert send("m2", offer) in bus.say("m2", hello("mistral", ready=True))
    # a lost sender's offer is void: the answer to it is stale
    bus.do(s.Departed(b"llama", "silent"))
    assert bus.say("m2", m.Accept(WIRE, "b" * 64)) == []
    assert bus.router.counters["dropped.stale_answer"] == 1


def test_an_answer_to_an_earlier_offer_is_dropped() -> None:
    bus = Bus()
    bus.join("llama", "mistral")
    bus.say("llama", m.Offer(WIRE, bridge("a" * 64)))
    bus.say("llama", m.Offer(WIRE, bridge("b" * 64)))
    assert bus.say("mistral", m.Accept(WIRE, "a" * 64)) == []
    assert bus.say("mistral", m.Accept(WIRE, "b" * 64)) != []


# -- credit ---------------------------------------------------------------------------------


def test_work_waits_for_credit_and_control_does_not() -> None:
    bus = Bus().open()
    for i in (1, 2, 3):
        assert bus.say("client", encode(i)) == []
    cancel = m.Cancel(WIRE, (bytes(16),))
    told = m.with_origin(cancel, "client")
    assert bus.say("client", cancel) == [send("llama", told), send("mistral", told)]
    assert bus.say("llama", credit(messages=2)) == [
        send("llama", as_from(encode(1))),
        send("llama", as_from(encode(2))),
        send("client", m.Credit(WIRE, 2, 2)),
    ]
    assert bus.router.gauges()["queued_messages"] == 1


def test_byte_credit_holds_too() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, 2, 3))
    bus.say("client", encode(4))
    # 3 bytes for 2 bytes of credit: overdrawn once, so the next one waits
    assert bus.say("llama", credit(messages=9, bytes=2)) == [
        send("llama", as_from(encode(1, 2, 3)))
    ]
    assert bus.say("llama", credit(messages=0, bytes=1)) == []
    assert send("llama", as_from(encode(4))) in bus.say("llama", credit(messages=0, bytes=1))


def test_more_than_was_granted_is_overloaded() -> None:
    bus = Bus().open()
    for i in range(4):
        bus.say("client", encode(i))
    nack = m.Nack(
        NackCode.OVERLOADED,
        f"{WIRE}: more was sent than was granted",
        WIRE,
        rows(9, size=1),
        LIMITS.retry_after_ms,
        "client",
    )
    assert bus.say("client", encode(9)) == [send("client", nack)]
    assert bus.router.gauges()["queued_messages"] == 4


def test_a_senders_excess_is_told_to_the_client_whose_rows_it_was() -> None:
    bus = Bus().open()
    for i in range(4):
        assert bus.say("llama", soft(i)) == []
    (out,) = bus.say("llama", soft(9))
    assert isinstance(out, s.Send)
    assert out.peer == b"client"
    assert codes([out]) == [NackCode.OVERLOADED]


def test_the_whole_bus_is_bounded() -> None:
    bus = Bus(RoutingLimits(lane_messages=100, lane_bytes=10**6, total_bytes=150))
    bus.open()
    assert [codes(bus.say("llama", soft(i))) for i in (1, 2, 3)] == [
        [],
        [],
        [NackCode.OVERLOADED],
    ]


def test_a_slow_receiver_does_not_stall_other_wires() -> None:
    bus = Bus().open()
    bus.say("llama", WIDE)
    for i in range(4):
        bus.say("llama", soft(i))  # mistral takes nothing on the wire
    bus.say("mistral", credit("@mistral"))
    direct = text(9, wire="@mistral")
    assert bus.say("client", direct) == [send("mistral", as_from(direct))]
    assert bus.say("client", encode(5)) == [send("llama", as_from(encode(5)))]


def test_clients_take_turns() -> None:
    bus = Bus().open()
    bus.join("client2")
    for i in (1, 2, 3):
        bus.say("client", encode(i))
    for i in (11, 12):
        bus.say("client2", encode(i))
    out = bus.say("llama", WIDE)
    order = [i.message for i in out if isinstance(i, s.Send) and isinstance(i.message, m.Encode)]
    assert [row.request_id[-1] for work in order for row in work.rows] == [1, 11, 2, 12, 3]


def test_absurd_credit_is_refused() -> None:
    bus = Bus().open()
    assert codes(bus.say("llama", credit(messages=2**40))) == [NackCode.MALFORMED]


# -- time, cancellation, loss ---------------------------------------------------------------


def test_deadlines_go_on_in_the_queue() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, ms_left=1000), now=10.0)
    (out, *_) = bus.say("llama", WIDE, now=10.4)
    assert out == send("llama", as_from(encode(1, ms_left=600)))


def test_work_and_results_go_on_as_they_came_unless_their_time_has_changed() -> None:
    bus = Bus().open()
    seal = Sealed({}, b"", b"")
    bus.say("mistral", WIDE)
    assert bus.do(s.Said(b"llama", soft(1), seal)) == [s.Send(b"mistral", soft(1), seal)]
    assert bus.do(s.Said(b"mistral", result(1), seal)) == [s.Send(b"client", result(1), seal)]
    bus.do(s.Said(b"client", encode(2, ms_left=1000), seal), now=10.0)
    bus.do(s.Said(b"client", encode(3), seal), now=10.0)
    aged, timeless, *_ = bus.say("llama", WIDE, now=10.4)
    assert aged == s.Send(b"llama", as_from(encode(2, ms_left=600)), None)
    assert timeless == s.Send(b"llama", as_from(encode(3)), seal)


def test_late_work_is_answered_and_costs_the_consumer_nothing() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, ms_left=100), now=10.0)
    bus.say("client", encode(2), now=10.0)
    out = bus.say("llama", credit(messages=1), now=11.0)
    assert codes(out) == [NackCode.DEADLINE]
    assert send("llama", as_from(encode(2))) in out


def test_late_work_is_swept_out_while_nobody_takes_it() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, ms_left=100), now=10.0)
    bus.say("client", encode(2, ms_left=5000), now=10.0)
    assert bus.do(s.Tick(), now=10.05) == []
    assert codes(bus.do(s.Tick(), now=10.2)) == [NackCode.DEADLINE]
    assert bus.router.gauges()["queued_messages"] == 1


def test_cancelled_work_leaves_the_queue_and_only_the_clients_own() -> None:
    bus = Bus().open()
    bus.join("client2")
    for i in (1, 2):
        bus.say("client", encode(i))
    bus.say("client2", encode(3))
    bus.say("client", encode(4, 5))
    ids = tuple(row.request_id for row in rows(1, 2, 3, 4))
    out = bus.say("client", m.Cancel(WIRE, ids))
    assert send("client", m.Credit(WIRE, 2, 2)) in out
    # another client's 3 stays, and 4 with 5, which is still wanted
    assert bus.router.gauges()["queued_messages"] == 2


def test_what_a_lost_agent_had_queued_is_dropped_and_its_producers_get_their_room() -> None:
    bus = Bus().open()
    bus.say("client", encode(1))
    bus.say("client", encode(2))
    bus.say("llama", soft(3))
    assert bus.do(s.Departed(b"llama", "silent for 5000 ms")) == [
        s.Dismiss(b"llama"),
        send("client", m.Credit(WIRE, 2, 2)),
        s.Emit(e.PeerLost("llama", 1, "silent for 5000 ms")),
    ]
    assert bus.router.gauges()["queued_messages"] == 0
    assert bus.router.counters["dropped.peer_lost"] == 3
    # what is sent from now on waits for the next incarnation, whose credit starts at nothing
    assert bus.say("client", encode(4)) == []
    bus.join("llama", epoch=2, id="new")
    assert send("new", as_from(encode(4))) in bus.say("new", WIDE)


def test_a_dead_process_is_forgotten_once() -> None:
    bus = Bus().open()
    assert s.Emit(e.PeerLost("mistral", 1, "the process ended")) in bus.do(s.Forget("mistral", 1))
    assert bus.do(s.Forget("mistral", 1)) == []
    assert codes(bus.arrive("mistral", 1)) == [NackCode.STALE_EPOCH]


def test_forgetting_an_old_incarnation_leaves_the_new_one_alone() -> None:
    bus = Bus()
    bus.join("mistral", epoch=2)
    assert bus.do(s.Forget("mistral", 1)) == []
    assert bus.router.gauges()["peers"] == 1


def test_goodbye_is_not_a_loss() -> None:
    bus = Bus().open()
    out = bus.do(s.Departed(b"mistral", "done", goodbye=True))
    assert s.Emit(e.PeerGone("mistral", 1, "done")) in out


def test_a_client_that_leaves_takes_its_work_with_it() -> None:
    bus = Bus().open()
    bus.say("client", encode(1))
    bus.do(s.Departed(b"client", "silent"))
    assert bus.router.gauges()["queued_messages"] == 0
    assert bus.say("llama", WIDE) == []


def test_busy_is_told_until_it_is_over() -> None:
    bus = Bus().open()
    seen = [bus.do(s.Reported(b"llama", ms)) for ms in (0, 1500, 2500, 0, 0)]
    assert seen == [
        [],
        [s.Emit(e.PeerBusy("llama", 1, 1500))],
        [s.Emit(e.PeerBusy("llama", 1, 2500))],
        [s.Emit(e.PeerBusy("llama", 1, 0))],
        [],
    ]


@pytest.mark.parametrize("wires", [{"a->a": ("a", "a")}, {"@a": ("a", "b")}])
def test_impossible_wires(wires: dict[str, tuple[str, str]]) -> None:
    with pytest.raises(LocalProtocolError, match="not possible"):
        Router(wires=wires, token=TOKEN)


# -- whatever happens -----------------------------------------------------------------------

_IDS = st.lists(st.integers(1, 60), min_size=1, max_size=3, unique=True)
_STIMULI = st.lists(
    st.one_of(
        st.tuples(st.just("encode"), _IDS),
        st.tuples(st.just("soft"), _IDS),
        st.tuples(st.just("credit"), st.sampled_from(["llama", "mistral"]), st.integers(0, 3)),
        st.tuples(st.just("lose"), st.sampled_from(["llama", "mistral"])),
        st.tuples(st.just("cancel"), _IDS),
        st.tuples(st.just("tick")),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(_STIMULI)
def test_every_message_is_forwarded_answered_queued_or_dropped_and_counted(
    steps: list[tuple[object, ...]],
) -> None:
    bus = Bus().open()
    ids = {"llama": "llama", "mistral": "mistral"}
    epochs = {"llama": 1, "mistral": 1}
    admitted = answered = 0
    granted = {"llama": 0, "mistral": 0}
    for now, step in enumerate(steps):
        out: list[s.Instruction] = []
        match step:
            case ("encode", list(numbers)):
                admitted += 1
                out = bus.say("client", encode(*numbers, ms_left=9000), float(now))
            case ("soft", list(numbers)):
                admitted += 1
                out = bus.say(ids["llama"], soft(*numbers), float(now))
            case ("credit", str(agent), int(count)):
                granted[agent] += count
                out = bus.say(ids[agent], credit(messages=count, bytes=10_000), float(now))
            case ("lose", str(agent)):
                epochs[agent] += 1
                granted[agent] = 0
                bus.do(s.Departed(ids[agent].encode(), "lost"))
                ids[agent] = f"{agent}{epochs[agent]}"
                bus.join(agent, epoch=epochs[agent], id=ids[agent])
            case ("cancel", list(numbers)):
                ids_ = tuple(row.request_id for row in rows(*numbers))
                out = bus.say("client", m.Cancel(WIRE, ids_), float(now))
            case _:
                out = bus.do(s.Tick(), float(now))
        answered += len(codes(out))
        for i in out:
            if isinstance(i, s.Send) and isinstance(i.message, m.Encode | m.Soft):
                name = "llama" if isinstance(i.message, m.Encode) else "mistral"
                assert i.peer == ids[name].encode()
                granted[name] -= 1
                assert granted[name] >= 0
        counters, gauges = bus.router.counters, bus.router.gauges()
        dropped = counters["dropped.peer_lost"] + counters["dropped.cancelled"]
        assert admitted == counters["forwarded"] + answered + dropped + gauges["queued_messages"]
        assert gauges["queued_messages"] <= 2 * LIMITS.lane_messages
        assert gauges["queued_bytes"] >= 0
