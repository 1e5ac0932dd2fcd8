import math

import pytest

from agentwire.agent.batching import Batcher, BatchGroup, Inbound, Kind, WorkItem
from agentwire.wire.messages import Row

GROUP = BatchGroup(Kind.ENCODE, "a->b", "task", "client", "soft", "text")


def item(
    number: int,
    *,
    group: BatchGroup = GROUP,
    at: float = 0.0,
    deadline: float = math.inf,
    solo: bool = False,
) -> WorkItem:
    row = Row(number.to_bytes(16, "big"))
    message = Inbound(group.wire, 1, 1, at, {})
    return WorkItem(row, group, (row.request_id, *group[:5]), message, deadline, solo)


def numbers(batch: list[WorkItem]) -> list[int]:
    return [int.from_bytes(i.row.request_id, "big") for i in batch]


def test_closes_when_full() -> None:
    batcher = Batcher(2, 10.0)
    for n in range(3):
        batcher.add(item(n))
    assert numbers(batcher.take(0.0)) == [0, 1]
    assert batcher.take(0.0) == []
    assert len(batcher) == 1


def test_closes_when_the_first_row_has_waited_long_enough() -> None:
    batcher = Batcher(16, 0.5)
    batcher.add(item(0, at=1.0))
    batcher.add(item(1, at=1.4))
    assert batcher.next_event() == 1.5
    assert batcher.take(1.49) == []
    assert numbers(batcher.take(1.5)) == [0, 1]
    assert batcher.next_event() == math.inf


def test_a_batch_of_one_message_does_not_wait_and_keeps_its_turn() -> None:
    batcher = Batcher(3, 10.0)
    for n in range(4):  # four messages of two rows each, in order of arrival
        group = GROUP._replace(message=n + 1)
        batcher.add(item(2 * n, group=group, at=n / 10))
        batcher.add(item(2 * n + 1, group=group, at=n / 10))
    assert batcher.next_event() == 0.0
    taken = [numbers(batcher.take(0.3)) for _ in range(4)]
    assert taken == [[0, 1], [2, 3], [4, 5], [6, 7]]
    for n in range(5):
        batcher.add(item(n, group=GROUP._replace(message=9)))
    assert [numbers(batcher.take(0.0)) for _ in range(2)] == [[0, 1, 2], [3, 4]]  # max size holds


@pytest.mark.parametrize(
    "other",
    [
        GROUP._replace(wire="a->c"),
        GROUP._replace(task="other"),
        GROUP._replace(channel="text"),
        GROUP._replace(origin="another client"),
        GROUP._replace(kind=Kind.TEXT),
        GROUP._replace(fallback="error"),
        GROUP._replace(reason="bad_payload"),
        GROUP._replace(bridge="fingerprint"),
        GROUP._replace(message=1),
    ],
)
def test_only_rows_of_the_same_group_share_a_batch(other: BatchGroup) -> None:
    batcher = Batcher(16, 0.0)
    batcher.add(item(0))
    batcher.add(item(1, group=other))
    batcher.add(item(2))
    batches = [numbers(batcher.take(1.0)), numbers(batcher.take(1.0))]
    assert sorted(batches) == [[0, 2], [1]]


def test_wires_take_turns() -> None:
    batcher = Batcher(1, 0.0)
    quiet = GROUP._replace(wire="a->c")
    for n in range(4):
        batcher.add(item(n))
    batcher.add(item(10, group=quiet))
    batcher.add(item(11, group=quiet))
    served = [numbers(batcher.take(1.0))[0] for _ in range(6)]
    assert served == [0, 10, 1, 11, 2, 3]


def test_two_groups_of_one_wire_cannot_starve_another_wire() -> None:
    batcher = Batcher(1, 0.0)
    groups = [GROUP, GROUP._replace(task="second"), GROUP._replace(wire="a->c")]
    for n in range(9):
        batcher.add(item(n, group=groups[n % 3]))
    served = [numbers(batcher.take(1.0))[0] % 3 for _ in range(6)]
    assert served.count(2) == 3


@pytest.mark.parametrize("change", [{"origin": "quiet client"}, {"task": "rare task"}])
@pytest.mark.parametrize("by_message", [False, True])
def test_a_flood_on_a_wire_delays_no_other_group_on_it(
    change: dict[str, str], by_message: bool
) -> None:
    batcher = Batcher(2, 0.5)
    quiet = GROUP._replace(**change)  # type: ignore[arg-type]
    for n in range(40):  # always enough for a full batch, which is due at once
        batcher.add(item(n, group=GROUP._replace(message=n // 2 + 1 if by_message else 0)))
    served = []
    for turn in range(8):
        if turn % 2:  # comes one by one, so its group is empty in between
            number = 100 + turn
            group = quiet._replace(message=number if by_message else 0)
            batcher.add(item(number, group=group, at=-1.0))
        served.append(numbers(batcher.take(1.0))[0] >= 100)
    assert served == [False, True] * 4


def test_a_flood_is_served_in_order_of_arrival() -> None:
    batcher = Batcher(4, 0.0)
    for n in range(6):
        batcher.add(item(n, group=GROUP._replace(message=n + 1), at=n / 100))
    assert [numbers(batcher.take(1.0))[0] for _ in range(6)] == list(range(6))


def test_solo_rows_are_computed_alone_at_once() -> None:
    batcher = Batcher(16, 10.0)
    batcher.add(item(0))
    batcher.add(item(1, solo=True))
    batcher.add(item(2, solo=True))
    assert numbers(batcher.take(0.0)) == [1]
    assert numbers(batcher.take(0.0)) == [2]
    assert batcher.take(0.0) == []
    assert numbers(batcher.take(10.0)) == [0]


def test_expired_rows_are_returned_once() -> None:
    batcher = Batcher(16, 100.0)
    batcher.add(item(0, deadline=5.0))
    batcher.add(item(1, deadline=3.0))
    batcher.add(item(2))
    assert batcher.next_event() == 3.0
    assert batcher.expired(2.9) == []
    assert numbers(batcher.expired(3.0)) == [1]
    assert batcher.next_event() == 5.0
    assert numbers(batcher.expired(9.0)) == [0]
    assert batcher.expired(1e9) == []
    assert numbers(batcher.take(100.0)) == [2]


def test_cancel_removes_only_rows_of_that_client() -> None:
    batcher = Batcher(16, 0.0)
    batcher.add(item(0))
    batcher.add(item(0, group=GROUP._replace(origin="another client")))
    batcher.add(item(1))
    assert numbers(batcher.cancel([item(0).row.request_id], "client")) == [0]
    assert len(batcher) == 2


def test_blocked_groups_do_not_block_others() -> None:
    batcher = Batcher(16, 0.0)
    other = GROUP._replace(wire="a->c")
    batcher.add(item(0))
    batcher.add(item(1, group=other))

    def blocked(group: BatchGroup) -> bool:
        return group == GROUP

    assert numbers(batcher.take(1.0, blocked)) == [1]
    assert batcher.take(1.0, blocked) == []
    assert batcher.next_event(blocked) == math.inf
    assert numbers(batcher.take(1.0)) == [0]


def test_a_blocked_row_still_expires() -> None:
    batcher = Batcher(16, 0.0)
    batcher.add(item(0, deadline=2.0))
    assert batcher.next_event(lambda group: True) == 2.0
    assert numbers(batcher.expired(2.0)) == [0]


def test_remove() -> None:
    batcher = Batcher(16, 0.0)
    first = item(0)
    batcher.add(first)
    assert batcher.remove(first)
    assert not batcher.remove(first)
    assert len(batcher) == 0


def test_a_batch_has_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="max_size"):
        Batcher(0, 0.0)


def test_batches_are_counted_by_kind_and_size() -> None:
    batcher = Batcher(3, 0.0)
    for n in range(7):
        batcher.add(item(n))
    batcher.add(item(9, group=GROUP._replace(kind=Kind.TEXT)))
    while batcher.take(1.0):
        pass
    assert batcher.taken == {(Kind.ENCODE, 3): 2, (Kind.ENCODE, 1): 1, (Kind.TEXT, 1): 1}
