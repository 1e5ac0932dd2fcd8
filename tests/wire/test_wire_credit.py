"""Credit: a consumer is never overrun, and a producer never waits without a reason."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire.credit import CreditGate, CreditWindow, Grant

WIRE = "a->b"


def test_nothing_may_be_sent_before_a_grant() -> None:
    gate = CreditGate()
    assert not gate.allows(WIRE)
    assert not gate.take(WIRE, 1)
    assert gate.left(WIRE) == Grant(0, 0)


def test_a_message_costs_one_message_and_its_bytes_on_its_own_wire() -> None:
    gate = CreditGate()
    gate.add(WIRE, 2, 100)
    assert gate.take(WIRE, 30)
    assert gate.left(WIRE) == Grant(1, 70)
    assert not gate.allows("a->c")
    assert gate.take(WIRE, 0)
    assert not gate.take(WIRE, 0)


def test_bytes_may_be_overdrawn_by_one_message() -> None:
    gate = CreditGate()
    gate.add(WIRE, 5, 10)
    assert gate.take(WIRE, 1000)
    assert gate.left(WIRE) == Grant(4, -990)
    assert not gate.take(WIRE, 1)
    gate.add(WIRE, 0, 990)
    assert not gate.take(WIRE, 1)
    gate.add(WIRE, 0, 1)
    assert gate.take(WIRE, 1)


@pytest.mark.parametrize(("messages", "size"), [(5, 0), (0, 101), (-1, 0), (0, -1)])
def test_a_grant_out_of_bounds_changes_nothing(messages: int, size: int) -> None:
    gate = CreditGate(max_messages=5, max_bytes=100)
    gate.add(WIRE, 1, 0)
    with pytest.raises(RemoteProtocolError) as caught:
        gate.add(WIRE, messages, size)
    assert caught.value.code is NackCode.MALFORMED
    assert gate.left(WIRE) == Grant(1, 0)


def test_the_number_of_wires_with_credit_is_bounded() -> None:
    gate = CreditGate(max_wires=2)
    gate.add("a", 1, 1)
    gate.add("b", 1, 1)
    with pytest.raises(RemoteProtocolError, match="2 wires"):
        gate.add("c", 1, 1)
    gate.add("a", 1, 1)


def test_credit_ends_with_its_consumer() -> None:
    gate = CreditGate()
    gate.add("a", 1, 1)
    gate.add("b", 1, 1)
    gate.clear()
    assert not gate.allows("a") and not gate.allows("b")


def test_grants_come_in_batches_of_half_a_window() -> None:
    window = CreditWindow(4, 1000)
    assert window.open() == Grant(4, 1000)
    for _ in range(4):
        window.arrived(10)
    assert window.consumed(10) is None
    assert window.consumed(10) == Grant(2, 20)


def test_bytes_alone_can_make_a_grant_due() -> None:
    window = CreditWindow(100, 1000)
    window.open()
    window.arrived(500)
    assert window.consumed(500) == Grant(1, 500)


def test_a_producer_that_sends_more_than_was_granted_is_refused() -> None:
    window = CreditWindow(2, 1000)
    with pytest.raises(RemoteProtocolError) as caught:
        window.arrived(1)
    assert caught.value.code is NackCode.OVERLOADED
    window.open()
    window.arrived(5000)
    with pytest.raises(RemoteProtocolError):
        window.arrived(1)


def test_a_new_producer_is_granted_what_is_free() -> None:
    window = CreditWindow(4, 100)
    window.open()
    window.arrived(30)
    assert window.open() == Grant(3, 70)
    window.arrived(500)
    assert window.open() == Grant(2, 0)
    assert window.consumed(500) == Grant(1, 70)


def test_local_misuse_raises() -> None:
    window = CreditWindow(1, 1)
    with pytest.raises(LocalProtocolError):
        window.consumed(0)
    with pytest.raises(LocalProtocolError):
        CreditWindow(0, 1)


@given(
    st.integers(1, 6),
    st.integers(1, 50),
    st.lists(st.integers(0, 80), min_size=1, max_size=40),
    st.lists(st.integers(0, 3), max_size=120),
)
def test_everything_crosses_and_the_window_holds(
    messages: int, size: int, work: list[int], schedule: list[int]
) -> None:
    """Whatever the order of arrivals, consumption and grants in flight, nothing is stuck."""
    gate, window = CreditGate(), CreditWindow(messages, size)
    grants = deque([window.open()])
    todo, flying, queue = deque(work), deque[int](), deque[int]()

    def step(action: int) -> bool:
        if action == 0 and todo and gate.take(WIRE, todo[0]):
            flying.append(todo.popleft())
        elif action == 1 and flying:
            window.arrived(flying[0])
            queue.append(flying.popleft())
        elif action == 2 and queue:
            grant = window.consumed(queue.popleft())
            if grant is not None:
                grants.append(grant)
        elif action == 3 and grants:
            grant = grants.popleft()
            gate.add(WIRE, grant.messages, grant.bytes)
        else:
            return False
        assert len(queue) + len(flying) <= messages
        assert sum(queue) + sum(flying) < size + 80
        return True

    for action in schedule:
        step(action)
    while any([step(action) for action in range(4)]):
        pass
    assert not todo and not flying and not queue
