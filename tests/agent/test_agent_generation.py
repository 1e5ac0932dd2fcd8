"""What a worker does with free text and with kept payloads: a fake backend and a fake clock."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_agent_worker import (
    FREE,
    TASK,
    WIRE,
    Bench,
    encode,
    ids,
    labels,
    receiver,
    rows,
    sender,
    soft,
)

from agentwire.agent.kept import KEPT_S, KeptKey, KeptPayloads
from agentwire.errors import NackCode
from agentwire.model.fake import FakeBackend, answer
from agentwire.spec.agent import FakeModel, OutgoingBridge
from agentwire.wire.messages import (
    Accept,
    Cancel,
    Channel,
    Credit,
    Decoding,
    Define,
    Mode,
    Nack,
    Offer,
    Piece,
    Result,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)

STREAMED = replace(FREE, decoding=Decoding(stream=True))
KEEP = TaskSpec("keep", "", "{text}")
UNIVERSAL = "fake:receiver:any:free_text"


def keep(bench: Bench, words: list[str], first: int = 0, **kw: Any) -> list[Result]:
    bench.handle(Define(KEEP), encode(words, first=first, mode=Mode.KEEP, task=KEEP.task_id, **kw))
    bench.run()
    return bench.take(Result)


def kept(name: bytes, first: int, **kw: Any) -> Any:
    return encode([name.hex()], first=first, mode=Mode.KEPT, **kw)


# -- kept payloads --------------------------------------------------------------------------


def test_a_kept_payload_is_sent_like_a_new_one() -> None:
    bench = sender()
    (note,) = keep(bench, ["a film", "a play"])
    assert (note.texts, note.labels, note.channel, note.reason) == (("", ""), 0, Channel.SOFT, "")
    assert note.payload_bytes == 8 * 16 * 2 and not bench.take(Soft)
    for place, text in enumerate(["a film", "a play"]):
        bench.handle(kept(note.rows[place].request_id, 10 + place))
        bench.handle(encode([text], first=20 + place))
        bench.run()
        first, second = bench.take(Soft)
        assert (ids(first), ids(second)) == ([10 + place], [20 + place])
        assert bytes(first.payload.data) == bytes(second.payload.data)
        assert "encode" not in first.stages and "encode" in second.stages


@pytest.mark.parametrize(
    "changes",
    [{"origin": "somebody"}, {"texts": ("ab" * 16,)}, {"texts": ("no hex",)}],
    ids=str,
)
def test_a_missing_or_foreign_payload_is_expired(changes: dict[str, Any]) -> None:
    bench = sender()
    (note,) = keep(bench, ["a film"])
    bench.handle(replace(kept(note.rows[0].request_id, 5), **changes))
    bench.run()
    (nack,) = bench.take(Nack)
    assert (nack.code, ids(nack)) == (NackCode.EXPIRED, [5])
    assert not bench.take(Soft) and not bench.take(Text)


def test_a_kept_payload_goes_to_every_receiver_of_its_bridge_and_is_encoded_once() -> None:
    bridges = {"sender->twin": "fake:receiver", "sender->other": "fake:other"}
    bench = sender(
        bridges=tuple(
            OutgoingBridge(wire=wire, receiver=wire.partition("->")[2], folder=folder)
            for wire, folder in {WIRE: "fake:receiver", **bridges}.items()
        ),
        agree=False,
    )
    for wire in (WIRE, *bridges):
        identity = bench.worker.agreements.outgoing[wire]
        assert identity is not None
        bench.handle(Accept(wire, identity.fingerprint), Credit(wire, 16, 1 << 20))
    texts: list[str] = []
    encoder = bench.backend.encode

    def counted(batch: Any, bridge: str) -> Any:
        texts.extend(batch)
        return encoder(batch, bridge)

    bench.backend.encode = counted  # type: ignore[method-assign]
    (note,) = keep(bench, ["a film"])
    name = note.rows[0].request_id
    for number, wire in enumerate((WIRE, "sender->twin", "sender->other"), 5):
        bench.handle(kept(name, number, wire=wire))
        bench.run()
    first, second = bench.take(Soft)
    assert (first.wire, second.wire) == (WIRE, "sender->twin")
    assert bytes(first.payload.data) == bytes(second.payload.data)
    assert texts == ["a film"]  # once
    (text,) = bench.take(Text)  # another receiver's language was not kept: the text speaks
    assert (text.wire, text.texts, text.reason) == (
        "sender->other",
        ("a film",),
        NackCode.NO_BRIDGE,
    )
    bench.handle(kept(name, 9, wire="sender->other", fallback="error"))
    bench.run()
    assert [n.code for n in bench.take(Nack)] == [NackCode.NO_BRIDGE]


def test_kept_payloads_expire() -> None:
    bench = sender()
    (note,) = keep(bench, ["a film"])
    bench.now += KEPT_S + 1
    bench.handle(kept(note.rows[0].request_id, 5))
    (nack,) = bench.take(Nack)
    assert nack.code is NackCode.EXPIRED


def test_without_a_bridge_the_text_is_kept_and_relayed() -> None:
    bench = sender(None)
    (note,) = keep(bench, ["a film"])
    assert (note.channel, note.reason) == (Channel.TEXT, NackCode.NO_BRIDGE)
    bench.handle(kept(note.rows[0].request_id, 5))
    bench.run()
    (text,) = bench.take(Text)
    assert (text.texts, text.reason) == (("a film",), NackCode.NO_BRIDGE)
    bench.handle(encode(["b"], first=6, mode=Mode.KEEP, task=KEEP.task_id, fallback="error"))
    bench.run()
    assert [n.code for n in bench.take(Nack)] == [NackCode.NO_BRIDGE]


def test_a_retry_as_text_relays_the_kept_text() -> None:
    bench = sender()
    (note,) = keep(bench, ["a film"])
    name = note.rows[0].request_id
    bench.handle(kept(name, 5, channel=Channel.TEXT, reason="bad_payload"))
    bench.run()
    (text,) = bench.take(Text)
    assert (text.texts, text.reason) == (("a film",), "bad_payload")


def test_the_store_is_bounded_and_evicts_the_oldest() -> None:
    store = KeptPayloads(max_bytes=25, seconds=10)
    keys = [KeptKey("c", bytes([n])) for n in range(4)]
    for now, key in enumerate(keys):
        store.put(key, float(now), text="x" * 10)
    assert [store.get(key, 4.0) is not None for key in keys] == [False, False, True, True]
    assert store.get(keys[2], 12.0) is None and len(store) == 1


def test_an_owner_within_its_share_of_the_store_loses_nothing() -> None:
    store = KeptPayloads(max_bytes=100, seconds=1000)
    mine = KeptKey("c", b"mine")
    store.put(mine, 0.0, text="x" * 10, owner="ada")
    for n in range(50):
        store.put(KeptKey("c", bytes([n])), 1.0, text="x" * 30, owner="bob")
    assert store.get(mine, 2.0) is not None and len(store) == 1 + 3
    store.put(mine, 3.0, text="y", owner="ada")  # again: replaces itself
    assert len(store) == 1 + 3
    store.put(KeptKey("c", b"late"), 1005.0, text="x", owner="bob")
    assert len(store) == 1  # the others have expired


# -- free text ------------------------------------------------------------------------------


def test_a_bridge_for_label_words_refuses_free_text_with_a_helpful_reason() -> None:
    bench = sender()
    bench.handle(encode(["a"], task=FREE.task_id, fallback="error"))
    bench.run()
    (nack,) = bench.take(Nack)
    assert nack.code is NackCode.UNSUPPORTED
    assert "sender--receiver was trained for answers in label words" in nack.reason
    bench = receiver()
    bench.handle(soft(["a"], task=FREE.task_id))
    (nack,) = bench.take(Nack)
    assert nack.code is NackCode.UNSUPPORTED and "label words" in nack.reason


def test_a_bridge_for_free_text_gets_generated_answers() -> None:
    bench = sender(UNIVERSAL)
    bench.handle(encode(["a film"], task=FREE.task_id))
    bench.run()
    (message,) = bench.take(Soft)
    other = receiver(agree=False)
    identity = FakeBackend("sender", FakeModel()).add_bridge(Path(UNIVERSAL))
    other.handle(Offer(WIRE, identity), message)
    other.run()
    (result,) = other.take(Result)
    assert result.channel is Channel.SOFT and result.texts[0].startswith("receiver: soft ")
    assert len(result.tokens) == 8


def test_streamed_pieces_add_up_to_the_answer() -> None:
    bench = receiver()
    wire = direct_wire("receiver")
    bench.handle(Define(STREAMED))
    message = Text(wire, STREAMED.task_id, rows(["Öl und ß"]), ("Öl und ß",), origin="client")
    bench.handle(message)
    bench.run()
    pieces, (result,) = bench.take(Piece), bench.take(Result)
    assert "".join(piece.texts[0] for piece in pieces) == result.texts[0] == "receiver: Öl und ß"
    sizes = [len(piece.texts[0].encode()) for piece in pieces]
    assert [piece.offsets[0] for piece in pieces] == [sum(sizes[:n]) for n in range(len(sizes))]
    assert {(piece.origin, piece.wire) for piece in pieces} == {("client", wire)}
    assert len(bench.busy) > len(pieces)  # a long answer counts as progress


def test_generation_stops_when_the_row_is_cancelled() -> None:
    bench = receiver()
    wire = direct_wire("receiver")
    bench.handle(Define(STREAMED))
    message = Text(wire, STREAMED.task_id, rows(["a b c d"]), ("a b c d",), origin="client")
    bench.handle(message)
    bench.arriving.append(Cancel(wire, (message.rows[0].request_id,), "client"))
    bench.run()
    assert not bench.take(Piece) and not bench.take(Result)


def test_an_invalid_conversation_is_refused_alone() -> None:
    bench = receiver()
    wire = direct_wire("receiver")
    chat = replace(FREE, form="chat")
    texts = ['[{"role": "user", "content": "hi"}]', "no json", '[{"role": "king", "content": ""}]']
    bench.handle(Define(chat), Text(wire, chat.task_id, rows(texts), tuple(texts), origin="client"))
    bench.run()
    (result,) = bench.take(Result)
    assert (ids(result), result.texts) == ([0], ("receiver: hi",))
    refused = bench.take(Nack)
    assert [n.code for n in refused] == [NackCode.MALFORMED] * 2
    assert all("conversation" in n.reason for n in refused)


def test_tokens_of_labels_are_counted() -> None:
    bench = receiver()
    bench.handle(soft(["a film"]))
    bench.run()
    (result,) = bench.take(Result)
    assert labels(result) == [answer("a film", TASK.labels)] and len(result.tokens) == 8
