"""The client with an endpoint in memory."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from patience import EVENT_S

from agentwire.errors import BusClosed, InputError, NackCode, RequestError, ScenarioError
from agentwire.runtime.client import MAX_RECONNECTS, Client
from agentwire.runtime.ledger import Admission
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from agentwire.wire.messages import (
    Cancel,
    Channel,
    Credit,
    Define,
    Encode,
    Message,
    Nack,
    Result,
    Row,
    TaskSpec,
    Text,
)

WIRE = "a->b"
TASK = TaskSpec("task", "Answer:", "{text} Answer:", ("good", "bad"))
M = TypeVar("M", bound=Message)


class FakeEndpoint:
    """An endpoint that a test controls."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.closed = False
        self.final = False
        self.descriptors: tuple[int, ...] = ()
        self.changed = asyncio.Event()
        self.on_message: Callable[[Message, float], None]
        self.on_lost: Callable[[str], None]

    def poll(self, seconds: float) -> bool:
        return False

    def start(self) -> None:
        pass

    def send(self, message: Message) -> None:
        if self.closed:
            raise BusClosed("The bus is closed.")
        self.sent.append(message)
        self.changed.set()

    def close(self, reason: str = "", timeout: float = 2.0) -> None:
        self.closed = True

    async def next(self, kind: type[M]) -> M:
        """Waits for the next message of this type."""
        while not (found := self.take(kind)):
            self.changed.clear()
            await self.changed.wait()
        return found[0]

    def take(self, kind: type[M]) -> list[M]:
        found = [m for m in self.sent if isinstance(m, kind)]
        self.sent = [m for m in self.sent if not isinstance(m, kind)]
        return found


class Bench:
    def __init__(self, admission: Admission | None = None) -> None:
        self.endpoint = FakeEndpoint()
        self.connected = asyncio.Event()
        self.events: list[tuple[str, dict[str, Any]]] = []

        def connect(on_message: Any, on_lost: Any) -> FakeEndpoint:
            self.connected.set()
            self.endpoint.on_message, self.endpoint.on_lost = on_message, on_lost
            return self.endpoint

        self.client = Client(connect, {WIRE: ("a", "b"), "@b": ("b",)}, self, admission=admission)
        self.client.start()

    def write(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def ready(self, credit: int = 16) -> None:
        self.client.agent_ready("a")
        self.client.agent_ready("b")
        if credit:
            self.endpoint.on_message(Credit(WIRE, credit, 1 << 20), 0.0)
            self.endpoint.on_message(Credit("@b", credit, 1 << 20), 0.0)

    def ask(self, *texts: str, **kw: Any) -> asyncio.Task[list[Outcome]]:
        fields: dict[str, Any] = {
            "channel": Channel.SOFT, "fallback": "text", "deadline_s": 30.0,
        }  # fmt: skip
        return asyncio.create_task(self.client.submit(WIRE, TASK, texts, **(fields | kw)))

    async def sent(self, kind: type[M] = Encode) -> list[M]:  # type: ignore[assignment]
        """The messages of this type that were sent, after all pending callbacks have run."""
        for _ in range(5):
            await asyncio.sleep(0)
        return self.endpoint.take(kind)

    async def reconnected(self) -> None:
        """Waits until the client has reconnected."""
        self.connected.clear()
        await self.connected.wait()

    def answer(self, encode: Encode, *, good: bool = True, task: str = TASK.task_id) -> None:
        one = np.log(np.array([0.75, 0.25] if good else [0.25, 0.75], dtype=np.float32))
        scores = np.tile(one, (len(encode.rows), 1)).tobytes()
        result = Result(WIRE, task, encode.rows, Channel.SOFT, scores, 2, stages={"encode": 1.0})
        self.endpoint.on_message(result, asyncio.get_running_loop().time())


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.client.close("the test ends")


def code(outcome: Outcome) -> NackCode | None:
    return outcome.code if isinstance(outcome, RequestError) else None


async def test_defines_once_and_waits_for_agents_and_credit(bench: Bench) -> None:
    first, second = bench.ask("x", "y"), bench.ask("z")
    assert await bench.sent(Define) == [Define(TASK)]
    bench.ready(credit=0)
    assert await bench.sent() == []
    bench.endpoint.on_message(Credit(WIRE, 1, 100), 0.0)
    (encode,) = await bench.sent()
    assert (encode.texts, encode.task, encode.solo) == (("x", "y"), TASK.task_id, False)
    assert all(r.ms_left is not None and 29_000 < r.ms_left <= 30_000 for r in encode.rows)
    bench.answer(encode)
    bench.endpoint.on_message(Credit(WIRE, 1, 100), 0.0)
    (encode,) = await bench.sent()
    bench.answer(encode, good=False)
    replies = [*await first, *await second]
    assert [r.label for r in replies if isinstance(r, Reply)] == ["good", "good", "bad"]


async def test_duplicate_and_unknown_results_are_ignored(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x")
    (encode,) = await bench.sent()
    bench.answer(Encode(WIRE, TASK.task_id, Channel.SOFT, "text", (Row(bytes(16)),), ("?",)))
    bench.answer(encode, task="another task")
    bench.answer(encode)
    bench.answer(encode, good=False)
    (reply,) = await asked
    assert isinstance(reply, Reply) and reply.label == "good"
    assert reply.stages["wire"] == pytest.approx(reply.latency_ms - 1.0)
    assert [event for event, _ in bench.events] == ["admitted", "finished"]


async def test_a_result_that_does_not_match_its_task_is_an_error(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x", fallback="error")
    (encode,) = await bench.sent()
    nan = np.full((1, 2), np.nan, dtype=np.float32).tobytes()
    bench.endpoint.on_message(Result(WIRE, TASK.task_id, encode.rows, Channel.SOFT, nan, 2), 0.0)
    assert [code(o) for o in await asked] == [NackCode.MALFORMED]


async def test_refused_rows_go_as_text_or_end(bench: Bench) -> None:
    bench.ready()
    by_text = bench.ask("x", "y", "z")
    (encode,) = await bench.sent()
    bench.endpoint.on_message(Nack(NackCode.BAD_PAYLOAD, "nan", WIRE, encode.rows[1:]), 0.0)
    (again,) = await bench.sent()
    assert (again.channel, again.reason, again.texts) == (Channel.TEXT, "bad_payload", ("y", "z"))
    bench.endpoint.on_message(Nack(NackCode.MODEL_ERROR, "boom", WIRE, again.rows[:1]), 0.0)
    for message in (encode, again):
        bench.answer(message)
    assert [code(o) for o in await by_text] == [None, NackCode.MODEL_ERROR, None]
    by_error = bench.ask("x", fallback="error")
    (encode,) = await bench.sent()
    bench.endpoint.on_message(Nack(NackCode.BAD_PAYLOAD, "nan", WIRE, encode.rows), 0.0)
    assert [code(o) for o in await by_error] == [NackCode.BAD_PAYLOAD]


async def test_a_refused_request_leaves_no_trace_and_a_known_one_is_never_refused() -> None:
    bench = Bench(Admission(rows=1))
    bench.ready()
    one = bytes(16)
    first = bench.ask("x", request_ids=[one])
    await bench.sent(Define)
    (encode,) = await bench.sent()
    events, other = list(bench.events), TaskSpec("other", "Other:", "{text} Other:", ("a", "b"))
    with pytest.raises(RequestError) as refused:
        await bench.client.submit(
            WIRE, other, ["y"], channel=Channel.SOFT, fallback="text", deadline_s=30.0
        )
    assert refused.value.code is NackCode.OVERLOADED and refused.value.retry_after_s
    assert (bench.events, bench.endpoint.sent, bench.client.outstanding) == (events, [], 1)
    again = bench.ask("x", request_ids=[one])  # outstanding: waits for the first call
    assert await bench.sent() == [] and not again.done()
    bench.answer(encode)
    assert await first == await again == await bench.ask("x", request_ids=[one])
    await bench.client.close("the test ends")


async def test_overloaded_rows_are_retried_later(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x")
    (encode,) = await bench.sent()
    bench.endpoint.on_message(Nack(NackCode.OVERLOADED, "full", WIRE, encode.rows, 20), 0.0)
    assert await bench.sent() == []
    again = await asyncio.wait_for(bench.endpoint.next(Encode), EVENT_S)
    assert again.channel is Channel.SOFT
    bench.answer(again)
    assert [code(o) for o in await asked] == [None]


async def test_a_task_that_the_bus_has_dropped_is_defined_again(bench: Bench) -> None:
    bench.ready()
    request = bench.ask("fine")
    (first,) = await bench.sent()
    assert await bench.sent(Define) == [Define(TASK)]
    bench.endpoint.on_message(Nack(NackCode.UNKNOWN_TASK, "dropped", WIRE, first.rows), 0.0)
    assert await bench.sent(Define) == [Define(TASK)]
    (again,) = await bench.sent()
    assert [row.request_id for row in again.rows] == [row.request_id for row in first.rows]
    request.cancel()


async def test_a_missed_deadline_tells_whether_the_request_was_sent(bench: Bench) -> None:
    bench.ready(credit=1)
    sent, unsent = bench.ask("x", deadline_s=0.02), bench.ask("y", deadline_s=0.02)
    (encode,) = await bench.sent()
    assert [code(o) for o in await sent] == [NackCode.DEADLINE]
    assert [code(o) for o in await unsent] == [NackCode.OVERLOADED]
    (cancel,) = await bench.sent(Cancel)
    assert cancel.request_ids == (encode.rows[0].request_id,)
    bench.answer(encode)  # too late, and ignored
    assert await bench.sent() == []


async def test_one_id_is_one_request(bench: Bench) -> None:
    bench.ready()
    ids = [b"i" * 16]
    first, second = bench.ask("x", request_ids=ids), bench.ask("x", request_ids=ids)
    with pytest.raises(InputError, match="in use for another request"):
        await bench.ask("other", request_ids=ids)
    (encode,) = await bench.sent()
    first.cancel()  # the second still waits
    assert await bench.sent(Cancel) == []
    bench.answer(encode)
    (reply,) = await second
    assert await bench.ask("x", request_ids=ids) == [reply]
    assert await bench.sent() == []


async def test_one_id_twice_in_a_batch(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x", "x", request_ids=[b"i" * 16] * 2)
    (encode,) = await bench.sent()
    assert len(encode.rows) == 1
    bench.answer(encode)
    one, two = await asked
    assert one is two


async def test_cancelling_the_last_caller_cancels_the_request(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x", "y")
    (encode,) = await bench.sent()
    asked.cancel()
    (cancel,) = await bench.sent(Cancel)
    assert set(cancel.request_ids) == {row.request_id for row in encode.rows}
    assert bench.events[-1][1]["outcome"] == "cancelled"
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_a_death_cancels_probes_and_dead_letters(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x", "y")
    (encode,) = await bench.sent()
    bench.client.agent_died("a", "SIGKILL")
    assert len((await bench.sent(Cancel))[0].request_ids) == 2
    assert await bench.sent() == []
    bench.client.agent_ready("a")
    (probe,) = await bench.sent()
    assert probe.solo and probe.rows[0].request_id == encode.rows[0].request_id
    bench.client.agent_died("a", "SIGKILL")
    bench.client.agent_ready("a")
    (probe,) = await bench.sent()
    bench.answer(probe)
    first, second = await asked
    assert code(first) is NackCode.DEAD_LETTER and code(second) is None


async def test_an_agent_that_is_down_fails_fast(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x")
    await bench.sent()
    bench.client.agent_down("b", "it died too often")
    assert [code(o) for o in await asked] == [NackCode.AGENT_DOWN]
    with pytest.raises(RequestError, match="died too often"):
        await bench.ask("y")


async def test_direct_wires_carry_text_and_never_fall_back(bench: Bench) -> None:
    bench.ready()
    asked = asyncio.create_task(
        bench.client.submit(
            "@b", TASK, ["x"], channel=Channel.TEXT, fallback="error", deadline_s=math.inf
        )
    )
    (text,) = await bench.sent(Text)
    assert (text.wire, text.texts, text.rows[0].ms_left) == ("@b", ("x",), None)
    bench.endpoint.on_message(Nack(NackCode.UNSUPPORTED, "no", "@b", text.rows), 0.0)
    assert [code(o) for o in await asked] == [NackCode.UNSUPPORTED]


async def test_large_batches_are_split(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask(*(str(n) for n in range(600)))
    messages = await bench.sent()
    assert [len(m.rows) for m in messages] == [256, 256, 88]
    for message in messages:
        bench.answer(message)
    assert len(await asked) == 600


async def test_a_lost_bus_ends_everything(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x")
    await bench.sent()
    bench.endpoint.closed = bench.endpoint.final = True
    bench.endpoint.on_lost("the broker is gone")
    (outcome,) = await asked
    assert code(outcome) is NackCode.CLOSING
    with pytest.raises(BusClosed, match="the broker is gone"):
        await bench.ask("y")


async def test_a_task_that_is_too_large_for_a_message(bench: Bench) -> None:
    task = TaskSpec("task", "p" * 100_000, "{text}", ("a", "b"))
    with pytest.raises(ScenarioError, match="prompt"):
        await bench.client.submit(
            WIRE, task, ["x"], channel=Channel.SOFT, fallback="text", deadline_s=1
        )


async def test_after_reconnecting_what_was_in_flight_is_sent_again(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x", "y")
    (first,) = await bench.sent()
    old = bench.endpoint
    bench.endpoint = FakeEndpoint()
    old.on_lost("the connection was closed")
    old.on_lost("said twice")
    late = bench.ask("z")  # admitted while disconnected
    await bench.reconnected()
    old.on_message(Credit(WIRE, 99, 1 << 20), 0.0)  # of a lost connection: void
    assert await bench.sent() == []
    bench.endpoint.on_message(Credit(WIRE, 16, 1 << 20), 0.0)
    again, new = await bench.sent()
    assert (again.rows[0].request_id, again.texts) == (first.rows[0].request_id, ("x", "y"))
    assert [m.task for m in bench.endpoint.take(Define)] == [TASK]
    bench.answer(first)  # the first copy's answer is good too
    bench.answer(again)
    bench.answer(new)
    assert [code(o) for o in [*await asked, *await late]] == [None] * 3
    assert [e for e, _ in bench.events].count("finished") == 2


async def test_nothing_is_sent_while_disconnected(bench: Bench) -> None:
    """Late credit from a lost connection must not release rows."""
    bench.ready(credit=1)
    asked = bench.ask("x")
    await bench.sent()
    waiting = bench.ask("y")  # without credit
    old, bench.endpoint = bench.endpoint, FakeEndpoint()
    old.on_lost("the connection was closed")
    old.on_message(Credit(WIRE, 8, 1 << 20), 0.0)
    await bench.reconnected()
    assert await bench.sent() == []
    bench.endpoint.on_message(Credit(WIRE, 16, 1 << 20), 0.0)
    messages = await bench.sent()
    assert sorted(text for m in messages for text in m.texts) == ["x", "y"]
    for message in messages:
        bench.answer(message)
    assert [code(o) for o in [*await asked, *await waiting]] == [None, None]


async def test_the_client_gives_up_after_too_many_reconnects(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentwire.runtime.client.RECONNECT_S", 0.0)
    bench.ready()
    asked = bench.ask("x")
    for _ in range(MAX_RECONNECTS):
        old, bench.endpoint = bench.endpoint, FakeEndpoint()
        old.on_lost("no Welcome")
        await bench.reconnected()
    bench.endpoint.on_lost("no Welcome")
    assert [code(o) for o in await asked] == [NackCode.CLOSING]


async def test_draining_admits_nothing_and_waits(bench: Bench) -> None:
    bench.ready()
    asked = bench.ask("x")
    (encode,) = await bench.sent()
    draining = asyncio.create_task(bench.client.drain(30.0))
    await asyncio.sleep(0)
    with pytest.raises(BusClosed, match="no new requests"):
        await bench.ask("y")
    assert not draining.done()
    bench.answer(encode)
    await draining
    assert [code(o) for o in await asked] == [None]
    await bench.client.drain(30.0)  # nothing is outstanding
