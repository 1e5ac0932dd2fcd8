"""The broker's decisions about credit: queueing, refusals and fairness."""

from __future__ import annotations

import dataclasses

from bus_messages import (
    WIDE,
    WIRE,
    encode,
    rows,
    soft,
    text,
)
from bus_router import LIMITS, Bus, as_from, codes, credit, send

from agentwire.bus import instructions as act
from agentwire.bus.flow import RoutingLimits
from agentwire.errors import NackCode
from agentwire.wire import messages as m

# -- credit -------------------------------------------------------------------------------


def test_work_waits_for_credit_and_control_does_not() -> None:
    bus = Bus().open()
    for i in (1, 2, 3):
        assert bus.say("client", encode(i)) == []
    cancel = m.Cancel(WIRE, (bytes(16),))
    told = dataclasses.replace(cancel, origin="client")
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


def test_a_sender_over_its_credit_ends_the_rows_at_their_client() -> None:
    bus = Bus().open()
    for i in range(4):
        assert bus.say("llama", soft(i)) == []
    (out,) = bus.say("llama", soft(9))
    assert isinstance(out, act.Send)
    assert out.peer == b"client"
    assert codes([out]) == [NackCode.OVERLOADED]


def test_the_whole_bus_is_bounded() -> None:
    bus = Bus(RoutingLimits(queue_messages=100, queue_bytes=10**6, total_bytes=150))
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
    order = [i.message for i in out if isinstance(i, act.Send) and isinstance(i.message, m.Encode)]
    assert [row.request_id[-1] for work in order for row in work.rows] == [1, 11, 2, 12, 3]


def test_absurd_credit_is_refused() -> None:
    bus = Bus().open()
    assert codes(bus.say("llama", credit(messages=2**40))) == [NackCode.MALFORMED]
