"""Replicas: names, routes, which one is sent to, and what their processes are born with."""

import random
from collections import Counter

import pytest

from agentwire.errors import NackCode, RequestError
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Batch, Ledger, Request
from agentwire.spec.agent import AgentSpec, OutgoingBridge
from agentwire.spec.routes import (
    WINDOW_ROWS,
    Load,
    agent_of,
    apart,
    choose,
    direct_routes_of,
    processes_of,
    routes_of,
)
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import Channel, Mode


def test_names() -> None:
    assert processes_of("b", 1) == ("b",)
    assert processes_of("b", 2) == ("b.1", "b.2")
    assert [agent_of(p) for p in ("b", "b.1", "b.12", "b-2")] == ["b", "b", "b", "b-2"]
    assert routes_of(("a",), ("b.1", "b.2")) == {"a->b.1": ("a", "b.1"), "a->b.2": ("a", "b.2")}
    assert len(routes_of(("a.1", "a.2"), ("b.1", "b.2"))) == 4
    assert direct_routes_of(("b.1", "b.2")) == {"@b.1": ("b.1",), "@b.2": ("b.2",)}


def test_the_least_loaded_is_chosen_then_the_least_used() -> None:
    assert choose([Load("x", (8,), 1), Load("y", (4,), 9)], 4) == "y"
    assert choose([Load("x", (4,), 3), Load("y", (4,), 2)], 4) == "y"
    assert choose([Load("x", (8, 1), 1), Load("y", (5, 3), 9)], 4) == "y"  # of both its ends
    assert choose([], 1) is None


def test_a_busy_replica_is_not_given_all_that_waits() -> None:
    assert choose([Load("x", (WINDOW_ROWS,), 1)], 1) is None
    assert choose([Load("x", (0, WINDOW_ROWS), 1)], 1) is None
    assert choose([Load("x", (WINDOW_ROWS - 1, WINDOW_ROWS - 1), 1)], 1) == "x"
    # Messages of their size.
    assert choose([Load("x", (300,), 1), Load("y", (200,), 1)], 100) == "y"
    assert choose([Load("x", (400,), 1)], 100) is None
    assert choose([Load("x", (0,), 1)], 10_000) == "x"  # one message always fits an idle one


def test_what_all_routes_share_is_no_choice() -> None:
    assert apart(routes_of(("a",), ("b.1", "b.2"))) == {"a->b.1": ("b.1",), "a->b.2": ("b.2",)}
    assert apart(routes_of(("a.1", "a.2"), ("b",)))["a.2->b"] == ("a.2",)
    assert apart(routes_of(("a",), ("b",))) == {"a->b": ()}


# -- the ledger -----------------------------------------------------------------------------

WIRES = {"a->b": ("a", "b"), "@b": ("b",), "@a": ("a",)}
ROUTES = {"a->b": routes_of(("a",), ("b.1", "b.2")), "@b": direct_routes_of(("b.1", "b.2"))}


def ledger(*ready: str) -> Ledger:
    book = Ledger(WIRES, routes=ROUTES)
    for process in ready or ("a", "b.1", "b.2"):
        book.ready(process)
    return book


def request(number: int, wire: str = "a->b", via: str = "") -> Request:
    row = Request(
        number.to_bytes(16, "big"), wire, "task", f"text {number}", Channel.SOFT, "text", 0.0
    )
    row.via = via
    return row


def admit(book: Ledger, *numbers: int, wire: str = "a->b", via: str = "") -> list[Request]:
    rows = [request(n, wire, via) for n in numbers]
    book.admit([rows])
    return rows


def batches(book: Ledger) -> list[Batch]:
    out = []
    while (batch := book.next(0.0, lambda wire: True)) is not None:
        out.append(batch)
    return out


def sent(book: Ledger) -> list[tuple[str, list[int]]]:
    return [
        (d.route, [int.from_bytes(r.request_id, "big") for r in d.requests]) for d in batches(book)
    ]


def test_messages_take_turns_and_an_answer_makes_room() -> None:
    book = ledger()
    first = admit(book, 1, 2)
    admit(book, 3, 4)
    assert sent(book) == [("a->b.1", [1, 2]), ("a->b.2", [3, 4])]
    for row in first:
        book.settle(row.request_id)
    admit(book, 5)
    assert sent(book) == [("a->b.1", [5])]


def test_a_sender_that_all_replicas_share_does_not_hold_them_back() -> None:
    book = ledger()
    for start in range(0, 10 * 16, 16):
        admit(book, *range(start, start + 16))
    flying = [len(numbers) for _, numbers in sent(book)]
    assert flying == [16] * 8  # four messages for each of two replicas


def test_a_direct_question_goes_where_less_is_in_flight_over_the_wire() -> None:
    book = ledger()
    admit(book, 1, 2)
    assert sent(book) == [("a->b.1", [1, 2])]
    admit(book, 3, wire="@b")
    assert sent(book) == [("@b.2", [3])]


def test_credit_of_one_route_does_not_hold_the_other() -> None:
    book = ledger()
    admit(book, 1)
    batch = book.next(0.0, lambda route: route == "a->b.2")
    assert batch is not None and batch.route == "a->b.2"


def test_what_a_dead_replica_had_goes_to_the_other_alone_and_others_wait_for_the_end() -> None:
    book = ledger()
    rows = admit(book, 1, 2)
    admit(book, 3)
    assert sent(book) == [("a->b.1", [1, 2]), ("a->b.2", [3])]
    requeued = book.died("b.1")
    assert requeued.again == tuple(rows) and not requeued.dead_letters
    assert [r.route for r in requeued.again] == ["a->b.1", "a->b.1"]  # where copies may travel
    assert sent(book) == []  # 3 is in flight through b.2: were that to die, who is to blame?
    book.settle(request(3).request_id)
    (probe,) = batches(book)
    assert (probe.route, probe.solo, len(probe.requests)) == ("a->b.2", True, 1)


def test_while_suspects_are_tried_on_one_replica_the_other_works_on() -> None:
    book = ledger()
    admit(book, 1, 2)
    assert sent(book) == [("a->b.1", [1, 2])]
    book.died("b.1")
    admit(book, 3)
    (probe,) = batches(book)
    assert probe.route == "a->b.2" and probe.solo
    book.ready("b.1")
    assert sent(book) == [("a->b.1", [3])]
    book.settle(probe.requests[0].request_id)
    (second,) = batches(book)
    assert second.route == "a->b.2" and second.solo  # suspects stay on the one that they have


def test_deaths_of_the_replicas_of_one_agent_add_up() -> None:
    book = ledger()
    (row,) = admit(book, 1)
    sent(book)
    assert not book.died("b.1").dead_letters
    assert sent(book) == [("a->b.2", [1])]
    assert book.died("b.2").dead_letters == (row,)


def test_only_the_last_replica_that_is_down_takes_the_wire_down() -> None:
    book = ledger()
    admit(book, 1)
    sent(book)
    book.died("b.1", crashed=False)
    assert book.down("b.1", "it died too often") == ()
    assert sent(book) == [("a->b.2", [1])]
    admit(book, 2)
    assert [n for _, numbers in sent(book) for n in numbers] == [2]
    book.died("b.2", crashed=False)
    assert len(book.down("b.2", "it died too often")) == 2
    with pytest.raises(RequestError) as error:
        admit(book, 3)
    assert error.value.code is NackCode.AGENT_DOWN
    admit(book, 4, wire="@a")
    assert sent(book) == [("@a", [4])]


def test_what_was_in_flight_goes_on_where_a_replica_goes_down_without_a_death() -> None:
    book = ledger()
    admit(book, 1)
    sent(book)
    assert book.down("b.1", "gone") == ()
    assert sent(book) == [("a->b.2", [1])]


def test_a_request_that_needs_one_process_waits_for_it_and_does_not_hold_others() -> None:
    book = ledger("a", "b.2")
    (row,) = admit(book, 1, wire="@b", via="b.1")
    row.mode = Mode.KEPT
    admit(book, 2, wire="@b")
    assert sent(book) == [("@b.2", [2])]
    book.ready("b.1")
    assert sent(book) == [("@b.1", [1])]
    book.died("b.1", crashed=False)
    assert book.down("b.1", "gone") == (row,)
    with pytest.raises(RequestError, match="gone"):
        admit(book, 3, wire="@b", via="b.1")


def test_a_request_may_need_one_route() -> None:
    wires = {"a->b": ("a", "b"), "@a": ("a",), "@b": ("b",)}
    book = Ledger(wires, routes={"a->b": routes_of(("a.1", "a.2"), ("b.1", "b.2"))})
    for process in ("a.1", "a.2", "b.1", "b.2"):
        book.ready(process)
    for number, route in enumerate(("a.2->b.1", "a.2->b.1", "a.1->b.2"), 1):
        admit(book, number, via=route)
    assert sent(book) == [("a.2->b.1", [1]), ("a.2->b.1", [2]), ("a.1->b.2", [3])]


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_of_replicas_lose_nothing_and_convict_only_the_guilty(seed: int) -> None:
    """Poison rows kill whichever replica computes them; nothing else does."""
    rng = random.Random(seed)
    book = Ledger(
        {"a->b": ("a", "b"), "@b": ("b",)},
        routes={
            "a->b": routes_of(("a",), ("b.1", "b.2", "b.3")),
            "@b": direct_routes_of(("b.1", "b.2", "b.3")),
        },
    )
    for process in ("a", "b.1", "b.2", "b.3"):
        book.ready(process)
    poison = set(rng.sample(range(1, 91), 5))
    for start in range(1, 91, 6):
        admit(book, *range(start, start + 6), wire=rng.choice(["a->b", "@b"]))
    answered: list[int] = []
    dead: list[int] = []
    flying: list[Request] = []
    away: list[str] = []
    worked: Counter[str] = Counter()
    for _ in range(10_000):
        if not len(book.requests):
            break
        for batch in batches(book):
            flying += batch.requests
        if away and (not flying or rng.random() < 0.3):
            book.ready(away.pop())
            continue
        rng.shuffle(flying)
        row = flying.pop()
        number = int.from_bytes(row.request_id, "big")
        replica = row.route.rpartition("b.")[2]
        if number not in poison:
            assert book.settle(row.request_id) is row
            answered.append(number)
            worked[replica] += 1
            continue
        requeued = book.died(f"b.{replica}")
        away.append(f"b.{replica}")
        dead += [int.from_bytes(r.request_id, "big") for r in requeued.dead_letters]
        gone = {r.request_id for r in (*requeued.dead_letters, *requeued.again)}
        flying = [r for r in flying if r.request_id not in gone]
    assert sorted(answered) == sorted(set(range(1, 91)) - poison)
    assert sorted(dead) == sorted(poison)
    assert len(worked) == 3


# -- the wiring -----------------------------------------------------------------------------


def deployment(**replicas: int) -> Deployment:
    wire = WireSpec.model_validate({"from": "a", "to": "b"})
    agents = {
        "a": AgentSpec(
            name="a",
            backend="fake",
            model="m",
            bridges=(OutgoingBridge(wire="a->b", receiver="b", folder="fake:n"),),
            cpu_shares={"a": 1, "b": 1},
        ),
        "b": AgentSpec(name="b", backend="fake", model="n"),
    }
    return Deployment.of_specs(agents, [wire], replicas=replicas)


def test_without_replicas_processes_are_the_agents() -> None:
    made = deployment()
    assert made.processes == dict(made.agents)
    assert made.ends == {"a->b": ("a", "b")}


def test_every_replica_is_born_with_the_routes_that_concern_it() -> None:
    made = deployment(a=2, b=2)
    assert list(made.processes) == ["a.1", "a.2", "b.1", "b.2"]
    sender, receiver = made.processes["a.2"], made.processes["b.1"]
    assert sender.name == "a.2"
    assert [(b.wire, b.receiver, b.folder) for b in sender.bridges] == [
        ("a.2->b.1", "b.1", "fake:n"),
        ("a.2->b.2", "b.2", "fake:n"),
    ]
    assert sender.fallback == {"a.2->b.1": "text", "a.2->b.2": "text"}
    assert sender.cpu_shares == dict.fromkeys(made.processes, 1)
    assert receiver.incoming == ("a.1->b.1", "a.2->b.1") and not receiver.bridges
    assert made.ends["a.2->b.1"] == ("a.2", "b.1") and len(made.ends) == 4
    assert made.agents_by_wire == {"a->b": ("a", "b"), "@a": ("a",), "@b": ("b",)}
