"""The worker with a fake backend, a fake clock, and a list instead of the bus."""

import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from agentwire.agent.worker import Worker
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.model.fake import FakeBackend, answer
from agentwire.runtime.pending import from_scores
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.wire.messages import (
    Accept,
    Cancel,
    Channel,
    Credit,
    Define,
    Encode,
    Message,
    Nack,
    Offer,
    Payload,
    RelaySpec,
    Result,
    Row,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)

WIRE = "sender->receiver"
TASK = TaskSpec("t", "Answer:", "{text}\nAnswer:", ("good", "bad"))
SUMMARY = TaskSpec("s", "Answer:", "{text}", ("good", "bad"), RelaySpec("Sum up: {text}", 2))
FREE = TaskSpec("f", "Go on:", "{text}", max_new_tokens=8)
M = TypeVar("M", bound=Message)


class Bench:
    """One worker with a manual clock; its messages are in ``sent``."""

    def __init__(self, spec: AgentSpec) -> None:
        self.now = 100.0
        self.sent: list[Message] = []
        self.busy: list[float | None] = []
        self.long_batches = 0
        self.arriving: list[Message] = []  # handled between computing and sending
        self.backend = FakeBackend(spec.model, spec.fake)
        bridges = {
            b.wire: self.backend.add_bridge(Path(b.folder)) if b.folder else None
            for b in spec.bridges
        }
        self.worker = Worker(
            spec,
            self.backend,
            bridges,
            self.sent.append,
            lambda: self.now,
            poll=self._poll,
            on_busy=self.busy.append,
            on_long_batch=self._on_long_batch,
        )
        self.worker.start()

    def _on_long_batch(self) -> None:
        assert self.busy[-1] is not None
        self.long_batches += 1

    def _poll(self) -> None:
        while self.arriving:
            self.handle(self.arriving.pop(0))

    def handle(self, *messages: Message) -> None:
        for message in messages:
            self.worker.handle(message, self.now)

    def run(self, after: float = 1.0) -> None:
        self.now += after
        while self.worker.run_once():
            pass

    def take(self, kind: type[M]) -> list[M]:
        found = [m for m in self.sent if isinstance(m, kind)]
        self.sent[:] = [m for m in self.sent if not isinstance(m, kind)]
        return found


def sender(
    folder: str | None = "fake:receiver", *, agree: bool = True, credit: int = 16, **fields: Any
) -> Bench:
    spec = AgentSpec.model_validate(
        {
            "name": "sender",
            "backend": "fake",
            "model": "sender",
            "bridges": (OutgoingBridge(wire=WIRE, receiver="receiver", folder=folder),),
        }
        | fields
    )
    bench = Bench(spec)
    bench.handle(Define(TASK), Define(SUMMARY), Define(FREE), Credit(WIRE, credit, 1 << 20))
    if agree:
        bench.handle(*(Accept(WIRE, offer.bridge.fingerprint) for offer in bench.take(Offer)))
    bench.sent.clear()
    return bench


def receiver(*, agree: bool = True, **fields: Any) -> Bench:
    spec = AgentSpec.model_validate(
        {"name": "receiver", "backend": "fake", "model": "receiver", "incoming": (WIRE,)} | fields
    )
    bench = Bench(spec)
    bench.handle(Define(TASK), Define(FREE))
    if agree:
        bench.handle(Offer(WIRE, bridge()))
    bench.sent.clear()
    return bench


def bridge() -> Any:
    return FakeBackend("sender", FakeModel()).add_bridge(Path("fake:receiver"))


def request_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rows(texts: list[str], first: int = 0, ms_left: int | None = None) -> tuple[Row, ...]:
    return tuple(
        Row(request_id(first + i), ms_left, size=len(t.encode())) for i, t in enumerate(texts)
    )


def encode(texts: list[str], *, first: int = 0, ms_left: int | None = None, **kw: Any) -> Encode:
    fields: dict[str, Any] = {
        "wire": WIRE, "task": TASK.task_id, "channel": Channel.SOFT, "fallback": "text",
        "rows": rows(texts, first, ms_left), "texts": tuple(texts), "origin": "client",
    }  # fmt: skip
    return Encode(**(fields | kw))


def soft(texts: list[str], *, first: int = 0, **kw: Any) -> Soft:
    backend = FakeBackend("sender", FakeModel(nan_on="nan"))
    identity = backend.add_bridge(Path("fake:receiver"))
    payload = backend.encode(texts, identity.fingerprint).payload
    fields: dict[str, Any] = {
        "wire": WIRE, "task": TASK.task_id, "bridge": identity.fingerprint,
        "rows": rows(texts, first), "stages": {"encode": 5.0, "queue": 1.0}, "origin": "client",
        "payload": Payload(payload.tobytes(), *payload.shape),
    }  # fmt: skip
    return Soft(**(fields | kw))


def ids(message: Soft | Text | Result | Nack) -> list[int]:
    return [int.from_bytes(row.request_id, "big") for row in message.rows]


def labels(result: Result) -> list[str]:
    scores = from_scores(result.scores, len(result.rows), result.labels)
    return [TASK.labels[row.index(max(row))] for row in scores]


# -- ready ----------------------------------------------------------------------------------


def test_start_sends_offers_and_credit() -> None:
    spec = AgentSpec(
        name="a",
        backend="fake",
        model="sender",
        bridges=(
            OutgoingBridge(wire="a->b", receiver="b", folder="fake:receiver"),
            OutgoingBridge(wire="a->c", receiver="c", folder=None),
        ),
        incoming=("z->a",),
    )
    bench = Bench(spec)
    assert [offer.wire for offer in bench.take(Offer)] == ["a->b"]
    credits = bench.take(Credit)
    assert {c.wire for c in credits} == {"a->b", "a->c", "z->a", "@a"}
    assert all(c.messages >= 2 * spec.max_batch and c.bytes > 0 for c in credits)


# -- sender ---------------------------------------------------------------------------------


def test_encodes_a_batch_from_several_messages() -> None:
    bench = sender(max_batch=4)
    bench.handle(encode(["a", "b"]), encode(["c", "d"], first=2))
    bench.run(0.0)  # full: no waiting
    (message,) = bench.take(Soft)
    assert ids(message) == [0, 1, 2, 3]
    assert message.payload.n == 4 and len(message.payload.data) == 4 * 8 * 16 * 2
    assert message.origin == "client" and not message.solo
    assert set(message.stages) == {"queue", "tokenize", "encode", "bridge"}
    assert bench.busy == [100.0, None] and bench.long_batches == 1


def test_the_io_thread_reads_during_long_and_unknown_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = sender()
    took, encode_batch = 0.3, bench.backend.encode

    def slow(*args: Any) -> Any:
        bench.now += took
        return encode_batch(*args)

    monkeypatch.setattr(bench.backend, "encode", slow)
    for number, (seconds, left) in enumerate([(0.3, 1), (0.3, 2), (0.001, 3), (0.001, 3)]):
        took = seconds
        bench.handle(encode(["a"], first=number))
        bench.run()
        assert bench.long_batches == left
    bench.handle(encode(["a", "b"], first=10))
    bench.run()
    assert bench.long_batches == 4  # of two rows nobody knows yet


def test_a_message_carries_the_remaining_deadline() -> None:
    bench = sender()
    bench.handle(encode(["a"], ms_left=5000))
    bench.run(2.0)
    (message,) = bench.take(Soft)
    assert message.rows[0].ms_left == 3000


def test_an_expired_row_is_refused() -> None:
    bench = sender()
    bench.handle(encode(["late"], ms_left=500), encode(["fine"], first=1))
    bench.run(1.0)
    (nack,) = bench.take(Nack)
    assert (nack.code, ids(nack), nack.origin) == (NackCode.DEADLINE, [0], "client")
    assert [ids(m) for m in bench.take(Soft)] == [[1]]


def test_rows_wait_until_the_offer_is_answered() -> None:
    bench = sender(agree=False)
    bench.handle(encode(["a"]))
    bench.run()
    assert not bench.take(Soft) and bench.worker.next_event() == math.inf
    bench.handle(Accept(WIRE, bridge().fingerprint))
    bench.run()
    assert [ids(m) for m in bench.take(Soft)] == [[0]]


def test_accepting_another_bridge_is_not_an_agreement() -> None:
    bench = sender(agree=False)
    bench.handle(encode(["a"]), Accept(WIRE, "another"))
    bench.run()
    assert not bench.take(Soft)


@pytest.mark.parametrize(
    ("folder", "messages", "kw", "code"),
    [
        (None, [], {}, NackCode.NO_BRIDGE),
        ("fake:receiver:other", [], {}, NackCode.PROMPT_MISMATCH),
        ("fake:receiver", [], {"task": FREE.task_id}, NackCode.UNSUPPORTED),
        (
            "fake:receiver",
            [Nack(NackCode.BRIDGE_MISMATCH, "no", WIRE)],
            {},
            NackCode.BRIDGE_MISMATCH,
        ),
    ],
)
def test_without_soft_tokens_rows_are_relayed_or_refused(
    folder: str | None, messages: list[Message], kw: dict[str, Any], code: NackCode
) -> None:
    bench = sender(folder)
    bench.handle(*messages, encode(["some words"], **kw))
    bench.handle(encode(["other words"], first=1, fallback="error", **kw))
    bench.run()
    (text,) = bench.take(Text)
    assert (ids(text), text.texts, text.reason) == ([0], ("some words",), code)
    (nack,) = bench.take(Nack)
    assert (ids(nack), nack.code) == ([1], code)


def test_a_bad_payload_row_is_relayed_alone() -> None:
    bench = sender(fake=FakeModel(nan_on="nan"))
    bench.handle(encode(["a", "nan here", "c"]))
    bench.run()
    (message,) = bench.take(Soft)
    (text,) = bench.take(Text)
    assert (ids(message), ids(text)) == ([0, 2], [1])
    assert (text.reason, text.texts) == (NackCode.BAD_PAYLOAD, ("nan here",))
    assert bench.worker.idle


def test_a_bad_payload_row_is_refused_with_fallback_error() -> None:
    bench = sender(fake=FakeModel(nan_on="nan"))
    bench.handle(encode(["a", "nan here"], fallback="error"))
    bench.run()
    (nack,) = bench.take(Nack)
    assert (ids(nack), nack.code) == ([1], NackCode.BAD_PAYLOAD)


def test_a_row_that_makes_the_model_raise_does_not_fail_its_batch() -> None:
    bench = sender(fake=FakeModel(raise_on="boom"))
    bench.handle(encode(["a", "boom", "c"]))
    bench.run()
    assert sorted(i for m in bench.take(Soft) for i in ids(m)) == [0, 2]
    (nack,) = bench.take(Nack)
    assert (ids(nack), nack.code) == ([1], NackCode.MODEL_ERROR)
    assert "the fake model raises" in nack.reason


def test_the_text_channel() -> None:
    bench = sender()
    bench.handle(encode(["one two three"], channel=Channel.TEXT, task=SUMMARY.task_id))
    bench.handle(encode(["four five six"], first=1, channel=Channel.TEXT, reason="bad_payload"))
    bench.run()
    texts = {m.texts: m.reason for m in bench.take(Text)}
    assert texts == {("one two",): "", ("four five six",): "bad_payload"}


def test_nothing_is_computed_for_a_wire_whose_message_waits_for_credit() -> None:
    bench = sender(max_batch=1, credit=2)
    bench.handle(*(encode([str(n)], first=n) for n in range(4)))
    bench.run()
    assert [i for m in bench.take(Soft) for i in ids(m)] == [0, 1]
    assert len(bench.busy) // 2 == 3  # one more is ready to go; the last is not computed
    assert not bench.worker.idle
    bench.handle(Credit(WIRE, 16, 1 << 20))
    bench.run()
    assert [i for m in bench.take(Soft) for i in ids(m)] == [2, 3]
    assert bench.worker.idle


# -- receiver -------------------------------------------------------------------------------


def test_answers_from_soft_tokens() -> None:
    texts = [f"text {n}" for n in range(8)]
    bench = receiver()
    bench.handle(soft(texts))
    bench.run()
    (result,) = bench.take(Result)
    assert labels(result) == [answer(t, TASK.labels) for t in texts]
    assert (result.channel, result.reason, result.payload_bytes) == (Channel.SOFT, "", 256)
    assert result.stages["encode"] == 5.0  # the sender's part stays
    assert result.stages["queue"] == pytest.approx(1.0 + 1000.0)  # and ours is added


def test_answers_together_and_replies_by_message() -> None:
    bench = receiver()
    bench.handle(soft(["a"]), soft(["b", "c"], first=1, stages={"encode": 9.0}))
    bench.run()
    results = bench.take(Result)
    assert [ids(r) for r in results] == [[0], [1, 2]]
    assert [r.stages["encode"] for r in results] == [5.0, 9.0]
    assert len(bench.busy) == 2  # one batch


def test_answers_from_text_and_directly() -> None:
    bench = receiver()
    text = Text(WIRE, TASK.task_id, rows(["hello"]), ("hello",), "no_bridge", origin="client")
    direct = Text(
        direct_wire("receiver"), FREE.task_id, rows(["hello"], 1), ("hello",), origin="client"
    )
    bench.handle(text, direct)
    bench.run()
    first, second = sorted(bench.take(Result), key=ids)
    assert labels(first) == [answer("hello", TASK.labels)]
    assert (first.channel, first.reason, first.payload_bytes) == (Channel.TEXT, "no_bridge", 5)
    assert (second.texts, second.labels) == (("receiver: hello",), 0)


def test_only_a_matching_bridge_is_accepted() -> None:
    bench = receiver(agree=False)
    backend = FakeBackend("sender", FakeModel())
    wide = FakeBackend("sender", FakeModel(width=32))
    bench.handle(Offer(WIRE, backend.add_bridge(Path("fake:another"))))
    bench.handle(Offer(WIRE, wide.add_bridge(Path("fake:receiver"))))
    bench.handle(Offer("x->y", backend.add_bridge(Path("fake:receiver"))))
    nacks = bench.take(Nack)
    assert [n.code for n in nacks] == ["bridge_mismatch", "bridge_mismatch", "unknown_wire"]
    assert not bench.take(Accept)
    bench.handle(soft(["a"]))
    assert bench.take(Nack)[0].code is NackCode.BRIDGE_MISMATCH
    bench.handle(Offer(WIRE, bridge()))
    assert bench.take(Accept) == [Accept(WIRE, bridge().fingerprint)]


def test_bad_payload_rows_are_refused_alone() -> None:
    bench = receiver()
    bench.handle(soft(["a", "nan", "c"]))
    bench.run()
    (nack,) = bench.take(Nack)
    assert (ids(nack), nack.code) == ([1], NackCode.BAD_PAYLOAD)
    assert [ids(r) for r in bench.take(Result)] == [[0, 2]]


@pytest.mark.parametrize("value", [np.inf, 60000.0, 0.0])
def test_payloads_out_of_range_are_refused(value: float) -> None:
    payload = np.full((1, 8, 16), value, dtype=np.float16)
    bench = receiver()
    bench.handle(soft(["a"], payload=Payload(payload.tobytes(), 1, 8, 16)))
    bench.run()
    assert [n.code for n in bench.take(Nack)] == [NackCode.BAD_PAYLOAD]


def test_payloads_that_were_not_agreed_on_are_refused() -> None:
    bench = receiver()
    shape = np.zeros((1, 4, 16), dtype=np.float16)
    bench.handle(
        soft(["a"], bridge="another"),
        soft(["a"], payload=Payload(shape.tobytes(), 1, 4, 16)),
        soft(["a"], task=FREE.task_id),
        soft(["a"], task="unknown"),
        soft(["a"], wire="x->y"),
        encode(["a"]),
    )
    assert [n.code for n in bench.take(Nack)] == [
        "bridge_mismatch", "bad_payload", "unsupported", "unknown_task", "unknown_wire",
        "unknown_wire",
    ]  # fmt: skip
    bench.run()
    assert not bench.take(Result)


def test_a_prompt_that_the_bridge_does_not_know_is_refused() -> None:
    bench = receiver(agree=False)
    identity = FakeBackend("sender", FakeModel()).add_bridge(Path("fake:receiver:other"))
    bench.handle(Offer(WIRE, identity), soft(["a"], bridge=identity.fingerprint))
    assert [n.code for n in bench.take(Nack)] == [NackCode.PROMPT_MISMATCH]


def test_a_task_that_the_model_cannot_answer_is_refused() -> None:
    bench = receiver()
    bad = TaskSpec("bad", "p", "{text}", ("same", "same"))
    bench.handle(Define(bad), soft(["a"], task=bad.task_id))
    (nack,) = bench.take(Nack)
    assert nack.code is NackCode.UNSUPPORTED and "distinct" in nack.reason


# -- retries, cancellation, closing ---------------------------------------------------------


def test_a_resent_row_is_answered_from_the_cache() -> None:
    bench = sender()
    bench.handle(encode(["a", "b"]))
    bench.run()
    (first,) = bench.take(Soft)
    batches = len(bench.busy)
    bench.handle(encode(["b"], first=1, solo=True))
    (again,) = bench.take(Soft)
    assert ids(again) == [1] and again.solo
    assert bytes(again.payload.data) == bytes(first.payload.data)[256:]
    assert again.stages == {} and len(bench.busy) == batches


def test_a_resent_request_gets_the_cached_result() -> None:
    bench = receiver()
    bench.handle(soft(["a", "b"]))
    bench.run()
    (first,) = bench.take(Result)
    bench.handle(soft(["b"], first=1))
    (again,) = bench.take(Result)
    assert labels(again) == labels(first)[1:] and len(bench.busy) == 2
    assert "decode" not in again.stages


def test_the_same_request_on_the_other_channel_is_new_work() -> None:
    bench = sender()
    bench.handle(encode(["a"]))
    bench.run()
    bench.handle(encode(["a"], channel=Channel.TEXT, reason="bad_payload"))
    bench.run()
    assert len(bench.take(Soft)) == 1 and len(bench.take(Text)) == 1


def test_a_resent_row_that_waits_is_computed_once() -> None:
    bench = sender()
    bench.handle(encode(["a", "b"]), encode(["a"], solo=True))
    bench.run()
    sent = bench.take(Soft)
    assert sorted(i for m in sent for i in ids(m)) == [0, 1]
    assert [ids(m) for m in sent if m.solo] == [[0]]  # the newer copy counts


def test_cancel_before_and_while_computing() -> None:
    bench = sender()
    bench.handle(encode(["a", "b", "c"]))
    bench.handle(Cancel(WIRE, (request_id(0),), origin="client"))
    bench.handle(Cancel(WIRE, (request_id(2),), origin="another client"))
    bench.arriving = [Cancel(WIRE, (request_id(1),), origin="client")]
    bench.run()
    assert [ids(m) for m in bench.take(Soft)] == [[2]]
    assert not bench.take(Nack) and bench.worker.idle


def test_a_row_cancelled_and_resent_while_computing_is_sent_alone() -> None:
    bench = sender()
    bench.handle(encode(["a", "b"]))
    bench.arriving = [
        Cancel(WIRE, (request_id(0), request_id(1)), origin="client"),
        encode(["b"], first=1, solo=True),
    ]
    bench.run()
    (message,) = bench.take(Soft)
    assert ids(message) == [1] and message.solo
    assert len(bench.busy) == 2 and bench.worker.idle


def test_a_closing_worker_finishes_its_rows() -> None:
    bench = sender()
    bench.handle(encode(["a"]))
    bench.worker.closing = True
    bench.handle(encode(["b"], first=1))
    bench.run()
    assert [ids(m) for m in bench.take(Soft)] == [[0]]
    assert [(n.code, ids(n)) for n in bench.take(Nack)] == [(NackCode.CLOSING, [1])]


def test_credit_is_returned_whatever_happens_to_a_message() -> None:
    bench = sender(max_batch=4, fake=FakeModel(raise_on="boom", nan_on="nan"))
    window = 8
    for n in range(40):
        first = n * 10
        bench.handle(Credit(WIRE, 4, 1 << 20))
        bench.handle(
            [
                encode(["a"], first=first),
                encode(["boom", "nan"], first=first),
                encode(["late"], first=first, ms_left=1),
                encode(["a"], first=first, task="unknown"),
                encode(["cancelled"], first=first),
            ][n % 5]
        )
        if n % 5 == 4:
            bench.handle(Cancel(WIRE, (request_id(first),), origin="client"))
        bench.run()
        granted = window + sum(c.messages for c in bench.sent if isinstance(c, Credit))
        assert granted - (n + 1) >= window // 2
    assert bench.worker.idle


def test_more_than_was_granted_is_a_protocol_error() -> None:
    bench = sender(max_batch=1, agree=False)
    with pytest.raises(RemoteProtocolError):
        for n in range(100):
            bench.handle(encode([str(n)], first=n))
