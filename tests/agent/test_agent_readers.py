"""Reader bridges in agents: halves, sizes and questions, with fake models and a fake clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_agent_worker import WIRE, Bench, encode, ids, receiver, rows, sender, soft

from agentwire.agent.validation import Agreements
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.model.fake import READER_SIZES, FakeBackend, text_hash
from agentwire.spec.agent import FakeModel, OutgoingBridge
from agentwire.wire.messages import (
    Accept,
    BridgeIdentity,
    Define,
    Mode,
    Nack,
    Offer,
    Payload,
    Result,
    Soft,
    TaskSpec,
    Text,
)

READER = "fake:receiver:reader"
ASK = TaskSpec(
    name="ask",
    prompt="\nQuestion: {question}\nAnswer:",
    text_prompt="{text}\nQuestion: {question}\nAnswer:",
    max_new_tokens=20,
)
KEEP = TaskSpec("keep", "", "{text}")
SHORT, MIDDLE, LONG = "one two", "word " * 20, "word " * 100


def identity() -> BridgeIdentity:
    return FakeBackend("sender", FakeModel()).add_bridge(Path(READER))


def asked(texts: list[str], *, first: int = 0) -> Any:
    return tuple(
        row._replace(question=f"q{first + i}?") for i, row in enumerate(rows(texts, first))
    )


def asking(texts: list[str], *, first: int = 0, **kw: Any) -> Any:
    return encode(texts, first=first, task=ASK.task_id, rows=asked(texts, first=first), **kw)


def asking_sender(**fields: Any) -> Bench:
    bench = sender(READER, **fields)
    bench.handle(Define(ASK), Define(KEEP))
    return bench


def asking_receiver(**fields: Any) -> Bench:
    bench = receiver(agree=False, **fields)
    bench.handle(Define(ASK), Offer(WIRE, identity()))
    bench.sent.clear()
    return bench


def payloads(texts: list[str], size: int, *, first: int = 0, **kw: Any) -> Soft:
    backend = FakeBackend("sender", FakeModel())
    bridge = backend.add_bridge(Path(READER)).fingerprint
    payload = backend.encode(texts, bridge, size).payload
    made = soft(texts, first=first, task=ASK.task_id, bridge=bridge, **kw)
    content = Payload(payload.tobytes(), *payload.shape)
    return replace(made, payload=content, rows=asked(texts, first=first))


# -- the offer ------------------------------------------------------------------------------


def half(**changes: Any) -> BridgeIdentity:
    return replace(identity(), receiver_half=True, width=40, **changes)


@pytest.mark.parametrize(
    ("loaded", "words"),
    [
        ((), "is not loaded by this agent; put the same bridge folder"),
        ((half(fingerprint="0" * 64),), "is not loaded by this agent"),
        ((half(sizes=(8, 16)),), "its card is not that of the receiver half"),
        ((half(),), ""),
    ],
)
def test_a_bridge_is_accepted_with_its_own_half(
    loaded: tuple[BridgeIdentity, ...], words: str
) -> None:
    model = FakeBackend("receiver", FakeModel()).identity
    agreements = Agreements(model, {}, [WIRE], {one.fingerprint: one for one in loaded})
    answer = agreements.answer_offer(Offer(WIRE, half()))
    if not words:
        assert isinstance(answer, Accept)
        assert agreements.check_payload(WIRE, half().fingerprint, (16, 40), ASK) == half()
        return
    assert isinstance(answer, Nack) and answer.code is NackCode.BRIDGE_MISMATCH
    assert words in answer.reason
    with pytest.raises(RemoteProtocolError, match="not agreed on"):
        agreements.check_payload(WIRE, half().fingerprint, (16, 40), ASK)


# -- the sender -----------------------------------------------------------------------------


def test_a_sender_groups_payloads_by_size_and_passes_questions_on() -> None:
    bench = asking_sender(max_batch=8)
    bench.handle(asking([LONG, SHORT, MIDDLE, SHORT, LONG]))
    bench.run()
    sent = bench.take(Soft)
    assert {message.payload.soft_tokens: ids(message) for message in sent} == {
        32: [0, 4], 8: [1, 3], 16: [2],
    }  # fmt: skip
    for message in sent:
        assert [row.question for row in message.rows] == [f"q{i}?" for i in ids(message)]
        assert message.payload.width == 16


def test_the_wire_may_fix_the_size() -> None:
    out = OutgoingBridge(wire=WIRE, receiver="receiver", folder=READER, soft_tokens=16)
    bench = asking_sender(max_batch=8, bridges=(out,))
    bench.handle(asking([LONG, SHORT]))
    bench.run()
    (message,) = bench.take(Soft)
    assert (message.payload.soft_tokens, ids(message)) == (16, [0, 1])


def test_kept_payloads_of_several_sizes_are_asked_in_one_message() -> None:
    bench = asking_sender(max_batch=8)
    bench.handle(encode([LONG, SHORT], mode=Mode.KEEP, task=KEEP.task_id))
    bench.run()
    notes = bench.take(Result)
    assert {note.payload_bytes for note in notes} == {32 * 16 * 2, 8 * 16 * 2}
    names = [row.request_id.hex() for note in notes for row in note.rows]
    assert all(not row.question for note in notes for row in note.rows)
    bench.handle(asking(names, first=10, mode=Mode.KEPT))
    bench.run()
    sent = bench.take(Soft)
    assert sorted(message.payload.soft_tokens for message in sent) == [8, 32]
    assert sorted(row.question for message in sent for row in message.rows) == ["q10?", "q11?"]


def test_a_relayed_text_keeps_its_question() -> None:
    bench = sender(None)
    bench.handle(Define(ASK), asking([SHORT]))
    bench.run()
    (message,) = bench.take(Text)
    assert (message.texts, message.rows[0].question) == ((SHORT,), "q0?")


# -- the receiver ---------------------------------------------------------------------------


def test_questions_share_a_batch_and_sizes_do_not() -> None:
    bench = asking_receiver(max_batch=8)
    bench.handle(payloads([SHORT, MIDDLE], 8), payloads([LONG], 8, first=2))
    bench.handle(payloads([LONG], 32, first=3))
    bench.run()
    answers = {
        name: text
        for result in bench.take(Result)
        for name, text in zip(ids(result), result.texts, strict=True)
    }
    assert answers == {
        i: f"receiver: soft {text_hash(text):08x} q{i}?"
        for i, text in enumerate([SHORT, MIDDLE, LONG, LONG])
    }
    assert bench.worker.batch_sizes["soft"] == {1: 1, 3: 1}


@pytest.mark.parametrize("size", [4, 12, 64])
def test_an_undeclared_size_is_refused(size: int) -> None:
    assert size not in READER_SIZES
    bench = asking_receiver()
    bench.handle(payloads([SHORT], size))
    bench.run()
    (nack,) = bench.take(Nack)
    assert (nack.code, ids(nack)) == (NackCode.BAD_PAYLOAD, [0])
    assert "8 or 16 or 32 x 16 was agreed on" in nack.reason


def test_a_bridge_with_one_size_still_takes_only_that() -> None:
    bench = receiver()
    content = Payload(np.ones((1, 16, 16), np.float16).tobytes(), 1, 16, 16)
    bench.handle(replace(soft(["a film"]), payload=content))
    bench.run()
    (nack,) = bench.take(Nack)
    assert nack.code is NackCode.BAD_PAYLOAD and "but 8 x 16 was agreed on" in nack.reason
