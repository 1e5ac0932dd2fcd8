"""The broker's decisions about task definitions and bridge offers."""

from __future__ import annotations

from bus_messages import (
    TASK,
    WIRE,
    bridge,
    encode,
    hello,
)
from bus_router import LIMITS, Bus, codes, send

from agentwire.bus import events as e
from agentwire.bus import instructions as act
from agentwire.errors import NackCode
from agentwire.wire import messages as m

# -- tasks and offers ---------------------------------------------------------------------


def other_task(name: str) -> m.TaskSpec:
    return m.TaskSpec(name, "p", "{text}")


def test_definitions_reach_ready_agents_and_every_later_incarnation() -> None:
    bus = Bus()
    bus.join("llama", "client")
    assert bus.say("client", m.Define(TASK)) == [send("llama", m.Define(TASK))]
    bus.expect("mistral", 1)
    assert send("mistral", m.Define(TASK)) not in bus.arrive("mistral")
    assert send("mistral", m.Define(TASK)) in bus.say("mistral", hello("mistral", ready=True))


def test_work_for_an_unknown_task_is_refused_and_its_credit_given_back() -> None:
    bus = Bus()
    bus.join("llama", "client")
    out = [bus.say("client", encode(i)) for i in (1, 2)]
    assert [codes(o) for o in out] == [[NackCode.UNKNOWN_TASK]] * 2
    assert out[1][-1] == send("client", m.Credit(WIRE, 2, 2))


def test_the_least_recently_used_task_is_dropped_first() -> None:
    bus = Bus().open()
    bus.say("client", m.Define(other_task("a")))
    bus.say("client", m.Define(other_task("b")))
    bus.say("client", encode(1))  # names TASK
    bus.say("client", m.Define(other_task("c")))
    assert bus.router.gauges()["tasks"] == LIMITS.tasks
    bus.join("mistral", epoch=2, id="new")
    bus.expect("llama", 2)
    bus.arrive("llama", 2, id="new llama")
    out = bus.say("new llama", hello("llama", ready=True))
    names = [
        i.message.task.name
        for i in out
        if isinstance(i, act.Send) and isinstance(i.message, m.Define)
    ]
    assert names == ["b", "film", "c"]


def test_an_offer_waits_for_the_receiver_and_its_answer_reaches_the_sender() -> None:
    bus = Bus()
    bus.join("llama")
    offer, accept = m.Offer(WIRE, bridge()), m.Accept(WIRE, "b" * 64)
    assert bus.say("llama", offer) == []
    bus.expect("mistral", 1)
    bus.arrive("mistral")
    assert send("mistral", offer) in bus.say("mistral", hello("mistral", ready=True))
    assert bus.say("mistral", accept) == [
        send("llama", accept),
        act.Emit(e.WireAgreed(WIRE, bridge())),
    ]


def test_a_refused_offer_is_reported_to_sender_and_owner() -> None:
    bus = Bus()
    bus.join("llama", "mistral")
    bus.say("llama", m.Offer(WIRE, bridge()))
    refusal = m.Nack(NackCode.BRIDGE_MISMATCH, "width 16, not 32", WIRE)
    assert bus.say("mistral", refusal) == [
        send("llama", refusal),
        act.Emit(e.WireRefused(WIRE, NackCode.BRIDGE_MISMATCH, "width 16, not 32")),
    ]


def test_offers_are_repeated_to_new_receivers_and_end_with_their_sender() -> None:
    bus = Bus()
    bus.join("llama", "mistral")
    offer = m.Offer(WIRE, bridge())
    assert bus.say("llama", offer) == [send("mistral", offer)]
    # a new receiver is asked again
    bus.expect("mistral", 2)
    bus.arrive("mistral", 2, id="m2")
    assert send("m2", offer) in bus.say("m2", hello("mistral", ready=True))
    # a lost sender's offer is void: the answer to it is stale
    bus.lose("llama", "silent")
    assert bus.say("m2", m.Accept(WIRE, "b" * 64)) == []
    assert bus.router.counters["dropped.stale_answer"] == 1


def test_an_answer_to_an_earlier_offer_is_dropped() -> None:
    bus = Bus()
    bus.join("llama", "mistral")
    bus.say("llama", m.Offer(WIRE, bridge("a" * 64)))
    bus.say("llama", m.Offer(WIRE, bridge("b" * 64)))
    assert bus.say("mistral", m.Accept(WIRE, "a" * 64)) == []
    assert bus.say("mistral", m.Accept(WIRE, "b" * 64)) != []
