"""The broker's decisions about deadlines, cancellation and loss; and on random input."""

from __future__ import annotations

import pytest
from bus_messages import (
    TOKEN,
    WIDE,
    WIRE,
    encode,
    result,
    rows,
    soft,
)
from bus_router import LIMITS, Bus, as_from, codes, credit, send
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwire.bus import events as e
from agentwire.bus import instructions as act
from agentwire.bus.routing import Router
from agentwire.errors import LocalProtocolError, NackCode
from agentwire.wire import messages as m
from agentwire.wire.codec import Sealed

# -- time, cancellation, loss -------------------------------------------------------------


def test_deadlines_run_while_work_is_queued() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, ms_left=1000), now=10.0)
    (out, *_) = bus.say("llama", WIDE, now=10.4)
    assert out == send("llama", as_from(encode(1, ms_left=600)))


def test_messages_are_forwarded_sealed_unless_their_deadline_changed() -> None:
    bus = Bus().open()
    seal = Sealed({}, b"", b"")
    bus.say("mistral", WIDE)
    assert bus.say("llama", soft(1), sealed=seal) == [act.Send(b"mistral", soft(1), seal)]
    assert bus.say("mistral", result(1), sealed=seal) == [act.Send(b"client", result(1), seal)]
    bus.say("client", encode(2, ms_left=1000), sealed=seal, now=10.0)
    bus.say("client", encode(3), sealed=seal, now=10.0)
    aged, timeless, *_ = bus.say("llama", WIDE, now=10.4)
    assert aged == act.Send(b"llama", as_from(encode(2, ms_left=600)), None)
    assert timeless == act.Send(b"llama", as_from(encode(3)), seal)


def test_expired_work_is_answered_and_costs_no_credit() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, ms_left=100), now=10.0)
    bus.say("client", encode(2), now=10.0)
    out = bus.say("llama", credit(messages=1), now=11.0)
    assert codes(out) == [NackCode.DEADLINE]
    assert send("llama", as_from(encode(2))) in out


def test_a_sweep_answers_expired_work() -> None:
    bus = Bus().open()
    bus.say("client", encode(1, ms_left=100), now=10.0)
    bus.say("client", encode(2, ms_left=5000), now=10.0)
    assert bus.sweep(10.05) == []
    assert codes(bus.sweep(10.2)) == [NackCode.DEADLINE]
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


def test_a_lost_agents_queue_is_dropped_and_its_room_granted() -> None:
    bus = Bus().open()
    bus.say("client", encode(1))
    bus.say("client", encode(2))
    bus.say("llama", soft(3))
    assert bus.lose("llama", "silent for 5000 ms") == [
        act.Disconnect(b"llama"),
        send("client", m.Credit(WIRE, 2, 2)),
        act.Emit(e.PeerLost("llama", 1, "silent for 5000 ms")),
    ]
    assert bus.router.gauges()["queued_messages"] == 0
    assert bus.router.counters["dropped.peer_lost"] == 3
    # what is sent from now on waits for the next incarnation, whose credit starts at nothing
    assert bus.say("client", encode(4)) == []
    bus.join("llama", epoch=2, id="new")
    assert send("new", as_from(encode(4))) in bus.say("new", WIDE)


def test_a_dead_process_is_disconnected_once() -> None:
    bus = Bus().open()
    assert act.Emit(e.PeerLost("mistral", 1, "the process ended")) in bus.disconnect("mistral", 1)
    assert bus.disconnect("mistral", 1) == []
    assert codes(bus.arrive("mistral", 1)) == [NackCode.STALE_EPOCH]


def test_disconnecting_an_old_incarnation_keeps_the_new_one() -> None:
    bus = Bus()
    bus.join("mistral", epoch=2)
    assert bus.disconnect("mistral", 1) == []
    assert bus.router.gauges()["peers"] == 1


def test_goodbye_is_not_a_loss() -> None:
    bus = Bus().open()
    out = bus.event("mistral", e.PeerLeft("mistral", 1, "done"))
    assert act.Emit(e.PeerLeft("mistral", 1, "done")) in out


def test_the_work_of_a_client_that_leaves_is_dropped() -> None:
    bus = Bus().open()
    bus.say("client", encode(1))
    bus.lose("client", "silent")
    assert bus.router.gauges()["queued_messages"] == 0
    assert bus.say("llama", WIDE) == []


def test_busy_time_is_reported_until_it_is_zero() -> None:
    bus = Bus().open()
    seen = [bus.event("llama", e.PeerBusy("llama", 1, ms)) for ms in (0, 1500, 2500, 0, 0)]
    assert seen == [
        [],
        [act.Emit(e.PeerBusy("llama", 1, 1500))],
        [act.Emit(e.PeerBusy("llama", 1, 2500))],
        [act.Emit(e.PeerBusy("llama", 1, 0))],
        [],
    ]


@pytest.mark.parametrize("wires", [{"a->a": ("a", "a")}, {"@a": ("a", "b")}])
def test_invalid_wires_are_refused(wires: dict[str, tuple[str, str]]) -> None:
    with pytest.raises(LocalProtocolError, match="Invalid wire"):
        Router(wires=wires, token=TOKEN)


# -- whatever happens ---------------------------------------------------------------------

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
        out: list[act.Instruction] = []
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
                bus.lose(ids[agent], "lost")
                ids[agent] = f"{agent}{epochs[agent]}"
                bus.join(agent, epoch=epochs[agent], id=ids[agent])
            case ("cancel", list(numbers)):
                ids_ = tuple(row.request_id for row in rows(*numbers))
                out = bus.say("client", m.Cancel(WIRE, ids_), float(now))
            case _:
                out = bus.sweep(float(now))
        answered += len(codes(out))
        for i in out:
            if isinstance(i, act.Send) and isinstance(i.message, m.Encode | m.Soft):
                name = "llama" if isinstance(i.message, m.Encode) else "mistral"
                assert i.peer == ids[name].encode()
                granted[name] -= 1
                assert granted[name] >= 0
        counters, gauges = bus.router.counters, bus.router.gauges()
        dropped = counters["dropped.peer_lost"] + counters["dropped.cancelled"]
        assert admitted == counters["forwarded"] + answered + dropped + gauges["queued_messages"]
        assert gauges["queued_messages"] <= 2 * LIMITS.queue_messages
        assert gauges["queued_bytes"] >= 0
