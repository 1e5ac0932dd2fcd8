import math
import random
from typing import Any

import pytest

from agentwire.errors import NackCode, RequestError
from agentwire.runtime.ledger import Admission, Batch, Ledger, Request
from agentwire.wire.messages import Channel, Mode

WIRES = {"a->b": ("a", "b"), "a->c": ("a", "c"), "@b": ("b",)}


def request(number: int, wire: str = "a->b") -> Request:
    return Request(
        number.to_bytes(16, "big"), wire, "task", f"text {number}", Channel.SOFT, "text", 0.0
    )


def ledger(*ready: str, **kw: Any) -> Ledger:
    book = Ledger(WIRES, **kw)
    for agent in ready or ("a", "b", "c"):
        book.ready(agent)
    return book


def drain(book: Ledger, now: float = 0.0) -> list[list[int]]:
    return [numbers(d) for d in batches(book, now)]


def batches(book: Ledger, now: float = 0.0) -> list[Batch]:
    out = []
    while (sent_batch := book.next(now, lambda wire: True)) is not None:
        out.append(sent_batch)
    return out


def numbers(sent_batch: Batch) -> list[int]:
    return [int.from_bytes(r.request_id, "big") for r in sent_batch.requests]


def batch(book: Ledger, *ids: int, wire: str = "a->b") -> list[Request]:
    requests = [request(n, wire) for n in ids]
    book.admit([requests])
    return requests


def test_sends_batches_in_order_and_settles_once() -> None:
    book = ledger()
    first = batch(book, 1, 2)
    batch(book, 3)
    assert drain(book) == [[1, 2], [3]]
    assert book.settle(first[0].request_id) is first[0]
    assert book.settle(first[0].request_id) is None
    assert len(book.requests) == 2


def test_waits_for_every_agent_of_the_wire() -> None:
    book = ledger("a")
    batch(book, 1)
    assert drain(book) == []
    book.ready("b")
    assert drain(book) == [[1]]


def test_missing_credit_of_one_wire_does_not_block_another() -> None:
    book = ledger()
    batch(book, 1)
    batch(book, 2, wire="a->c")
    sent = book.next(0.0, lambda wire: wire == "a->c")
    assert sent is not None and numbers(sent) == [2]
    assert book.next(0.0, lambda wire: wire == "a->c") is None


def test_an_ended_request_is_not_sent() -> None:
    book = ledger()
    first, _ = batch(book, 1, 2)
    (third,) = batch(book, 3)
    book.settle(first.request_id)
    book.settle(third.request_id)
    assert drain(book) == [[2]]


def test_suspects_are_sent_alone_one_at_a_time_and_first() -> None:
    book = ledger()
    suspects = batch(book, 1, 2, 3)
    drain(book)
    requeued = book.died("a")
    assert requeued.again == tuple(suspects) and not requeued.dead_letters
    batch(book, 4)
    batch(book, 5, wire="a->c")
    batch(book, 6, wire="@b")
    assert drain(book) == []  # a is not ready; @b shares b with the suspects
    book.ready("a")
    for n, suspect in enumerate(suspects, 1):
        (probe,) = batches(book)
        assert (numbers(probe), probe.solo) == ([n], True)
        book.settle(suspect.request_id)
    assert drain(book) == [[4], [5], [6]]


def test_a_second_death_dead_letters_the_probe_alone() -> None:
    book = ledger()
    one, two, three = batch(book, 1, 2, 3)
    drain(book)
    book.died("b")
    book.ready("b")
    assert drain(book) == [[1]]
    book.settle(one.request_id)
    assert drain(book) == [[2]]
    requeued = book.died("b")
    assert requeued.dead_letters == (two,) and not requeued.again
    book.ready("b")
    assert drain(book) == [[3]]
    assert book.settle(two.request_id) is None
    assert book.settle(three.request_id) is three
    assert len(book.requests) == 0


def test_deaths_of_different_agents_do_not_add_up() -> None:
    book = ledger()
    (one,) = batch(book, 1)
    drain(book)
    book.died("a")
    book.ready("a")
    drain(book)
    assert not book.died("b").dead_letters
    book.ready("b")
    assert drain(book) == [[1]]
    assert book.died("a").dead_letters == (one,)


def test_waiting_requests_are_not_suspects() -> None:
    book = ledger()
    batch(book, 1)
    assert book.died("a") == book.died("b")  # nothing was in flight
    book.ready("a")
    book.ready("b")
    (sent,) = batches(book)
    assert not sent.solo


def test_an_orderly_shutdown_makes_no_suspects() -> None:
    book = ledger()
    requests = batch(book, 1, 2)
    drain(book)
    batch(book, 3)
    for _ in range(5):
        requeued = book.died("a", now=0.0, crashed=False)
        assert not requeued.dead_letters and set(requests) <= set(requeued.again)
        book.ready("a")
        sent = batches(book)
        assert sorted(n for d in sent for n in numbers(d)) == [1, 2, 3]
        assert not any(d.solo for d in sent)


def test_retried_requests_still_fit_a_message() -> None:
    book = ledger()
    requests = [request for n in range(0, 300, 100) for request in batch(book, *range(n, n + 100))]
    drain(book)
    book.retry(requests, now=0.0)
    assert [len(d.requests) for d in batches(book)] == [256, 44]


def test_a_late_answer_ends_a_suspect() -> None:
    book = ledger()
    one, _ = batch(book, 1, 2)
    drain(book)
    book.died("a")
    assert book.settle(one.request_id) is one
    book.ready("a")
    assert drain(book) == [[2]]


def test_refused_rows_are_retried_as_text_together_and_first() -> None:
    book = ledger()
    one, two, three = batch(book, 1, 2, 3)
    drain(book)
    batch(book, 4)
    book.retry([one, three], now=0.0, as_text="bad_payload")
    first, second = batches(book)
    assert numbers(first) == [1, 3] and numbers(second) == [4]
    assert (first.requests[0].channel, first.requests[0].reason) == (Channel.TEXT, "bad_payload")
    assert two.channel is Channel.SOFT


def test_pauses() -> None:
    book = ledger()
    (one,) = batch(book, 1)
    drain(book)
    book.retry([one], now=10.0, after=0.5)
    assert drain(book, 10.2) == []
    assert book.next_event(10.2) == 10.5
    assert drain(book, 10.5) == [[1]]
    assert book.next_event(10.5) == math.inf


def test_a_refused_suspect_stays_a_suspect() -> None:
    book = ledger()
    one, _two = batch(book, 1, 2)
    drain(book)
    book.died("a")
    book.ready("a")
    assert drain(book) == [[1]]
    book.retry([one], now=0.0, as_text="bad_payload")
    (probe,) = batches(book)
    assert numbers(probe) == [1] and probe.solo and probe.requests[0].channel is Channel.TEXT


def test_retry_of_an_ended_request_does_nothing() -> None:
    book = ledger()
    (one,) = batch(book, 1)
    drain(book)
    book.settle(one.request_id)
    book.retry([one], now=0.0)
    assert drain(book) == []


def test_an_agent_that_is_down_ends_its_requests_and_refuses_new_ones() -> None:
    book = ledger()
    (one,) = batch(book, 1)
    (two,) = batch(book, 2, wire="a->c")
    drain(book)
    assert book.down("b", "it died 4 times in 60 s") == (one,)
    with pytest.raises(RequestError, match="died 4 times") as error:
        batch(book, 3)
    assert error.value.code is NackCode.AGENT_DOWN
    batch(book, 4, wire="a->c")
    assert drain(book) == [[4]]
    assert book.outstanding()[0] is two


def test_the_number_of_requests_is_bounded() -> None:
    book = ledger(admission=Admission(rows=2))
    batch(book, 1, 2)
    with pytest.raises(RequestError) as error:
        batch(book, 3)
    assert error.value.code is NackCode.OVERLOADED
    assert len(book.requests) == 2


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_lose_nothing_and_dead_letter_only_poison(seed: int) -> None:
    """Poison rows kill their agent whenever they are computed; nothing else does."""
    rng = random.Random(seed)
    book = ledger()
    poison = set(rng.sample(range(1, 61), 4))
    for start in range(1, 61, 6):
        batch(book, *range(start, start + 6), wire=rng.choice(list(WIRES)))
    answered: list[int] = []
    dead: list[int] = []
    flying: list[Request] = []
    for _ in range(10_000):
        if not len(book.requests):
            break
        for sent_batch in batches(book):
            flying += sent_batch.requests
        rng.shuffle(flying)
        row = flying.pop()
        number = int.from_bytes(row.request_id, "big")
        if number not in poison:
            assert book.settle(row.request_id) is row
            answered.append(number)
            continue
        agent = rng.choice(WIRES[row.wire]) if not row.deaths else next(iter(row.deaths))
        requeued = book.died(agent)
        dead += [int.from_bytes(r.request_id, "big") for r in requeued.dead_letters]
        gone = {*requeued.dead_letters, *requeued.again}
        flying = [r for r in flying if r not in gone]
        book.ready(agent)
    assert sorted(answered) == sorted(set(range(1, 61)) - poison)
    assert sorted(dead) == sorted(poison)


def test_texts_take_the_fallback_wire_once_the_sender_is_down() -> None:
    book = ledger(fallback_wires={"a->b": "@b"})
    sent, waiting = batch(book, 1, 2), batch(book, 3)
    other = batch(book, 4, wire="a->c")
    assert drain(book)[0] == [1, 2]
    book.died("a")
    assert book.down("a", "it died too often") == tuple(other)
    late = batch(book, 5)
    (first, second) = batches(book)
    assert numbers(first) == [1, 2, 3] and numbers(second) == [5]
    for request in (*sent, *waiting, *late):
        assert (request.wire, request.channel, request.reason) == ("@b", "text", "agent_down")
        assert book.settle(request.request_id) is request
    assert len(book.requests) == 0


def test_a_fallback_wire_does_not_help_if_the_receiver_is_down() -> None:
    book = ledger(fallback_wires={"a->b": "@b"})
    requests = batch(book, 1)
    assert book.down("b", "gone") == tuple(requests)
    with pytest.raises(RequestError) as error:
        batch(book, 2)
    assert error.value.code is NackCode.AGENT_DOWN


def test_the_bytes_of_all_texts_are_limited() -> None:
    book = ledger(admission=Admission(bytes=14))
    first, _ = batch(book, 1, 2)
    with pytest.raises(RequestError) as error:
        batch(book, 3)
    assert error.value.code is NackCode.OVERLOADED and error.value.retry_after_s
    book.settle(first.request_id)
    batch(book, 3)


@pytest.mark.parametrize("change", [{"fallback": "error"}, {"mode": Mode.KEPT}], ids=str)
def test_requests_that_need_their_sender_take_no_fallback_wire(change: dict[str, Any]) -> None:
    book = ledger(fallback_wires={"a->b": "@b"})
    (request,) = batch(book, 1)
    for name, value in change.items():
        setattr(request, name, value)
    assert book.down("a", "gone") == (request,)
