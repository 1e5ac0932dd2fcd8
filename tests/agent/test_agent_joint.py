"""Payloads that a receiver keeps and reads together, with a fake backend and a fake clock."""

from dataclasses import replace
from typing import Any

import pytest
from test_agent_worker import TASK, Bench, ids, labels, receiver, soft
from test_agent_worker import bridge as plain

from agentwire.errors import NackCode
from agentwire.model.fake import joint_answer
from agentwire.runtime.call_options import KEEP
from agentwire.spec.agent import JointBridges
from agentwire.wire.messages import Channel, Define, Nack, Offer, Result, Row, Text, direct_wire

OTHER = "second->receiver"
SECOND = replace(plain(), fingerprint="ab" * 32)
BOTH = (plain().fingerprint, SECOND.fingerprint)
ASKED = replace(TASK, form="kept")


def joint(*sets: tuple[str, ...], prompts: tuple[str, ...] = ("any",)) -> Bench:
    """A receiver of two wires that reads these sets of bridges together."""
    spec = tuple(JointBridges(name="set", bridges=one, prompts=prompts) for one in sets)
    bench = receiver(incoming=("sender->receiver", OTHER), joint=spec)
    bench.handle(Offer(OTHER, SECOND), Define(KEEP), Define(ASKED))
    bench.sent.clear()
    return bench


def hold(bench: Bench, text: str, number: int, wire: str = "sender->receiver") -> bytes:
    """Keeps a payload and returns its name."""
    fingerprint = BOTH[wire == OTHER]
    bench.handle(soft([text], first=number, task=KEEP.task_id, wire=wire, bridge=fingerprint))
    bench.run()
    (note,) = bench.take(Result)
    assert (note.texts, note.labels, note.channel) == (("",), 0, Channel.SOFT)
    assert (note.payload_bytes, ids(note)) == (8 * 16 * 2, [number])
    return note.rows[0].request_id


def ask(*names: bytes, number: int = 9, **changes: Any) -> Text:
    text = " ".join(name.hex() for name in names)
    row = Row(number.to_bytes(16, "big"), size=len(text))
    wire = direct_wire("receiver")
    return replace(Text(wire, ASKED.task_id, (row,), (text,), origin="client"), **changes)


def test_kept_payloads_are_read_in_the_requested_order() -> None:
    bench = joint(BOTH, BOTH[::-1])
    first, second = hold(bench, "a plot", 1), hold(bench, "an actor", 2, OTHER)
    cases = [((first, second), ["a plot", "an actor"]), ((second, first), ["an actor", "a plot"])]
    for number, (names, texts) in enumerate(cases, 5):
        bench.handle(ask(*names, number=number))
        bench.run()
        (result,) = bench.take(Result)
        assert result.channel is Channel.SOFT and result.wire == "@receiver"
        assert labels(result) == [joint_answer(texts, TASK.labels)]


def test_an_untrained_order_is_refused_with_a_helpful_reason() -> None:
    bench = joint(BOTH)
    first, second = hold(bench, "a", 1), hold(bench, "b", 2, OTHER)
    for names in ((second, first), (first, first), (first,)):
        bench.handle(ask(*names))
        bench.run()
        (nack,) = bench.take(Nack)
        assert nack.code is NackCode.BRIDGE_MISMATCH and "agentwire train" in nack.reason
    assert not bench.take(Result)


@pytest.mark.parametrize(
    ("prompts", "code"),
    [(("ab" * 32,), NackCode.PROMPT_MISMATCH), ((TASK.prompt_hash,), None)],
)
def test_a_set_answers_only_prompts_that_it_was_trained_for(
    prompts: tuple[str, ...], code: NackCode | None
) -> None:
    bench = joint(BOTH, prompts=prompts)
    bench.handle(ask(hold(bench, "a", 1), hold(bench, "b", 2, OTHER)))
    bench.run()
    assert [nack.code for nack in bench.take(Nack)] == ([code] if code else [])
    assert len(bench.take(Result)) == (code is None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"origin": "somebody"}, NackCode.EXPIRED),
        ({"texts": ("ab" * 16,)}, NackCode.EXPIRED),
        ({"texts": ("no hex",)}, NackCode.MALFORMED),
        ({"texts": (" ".join(["ab" * 16] * 17),)}, NackCode.MALFORMED),
    ],
    ids=str,
)
def test_invalid_payload_names(changes: dict[str, Any], code: NackCode) -> None:
    bench = joint(BOTH)
    bench.handle(ask(hold(bench, "a", 1), hold(bench, "b", 2, OTHER), **changes))
    bench.run()
    (nack,) = bench.take(Nack)
    assert (nack.code, ids(nack)) == (code, [9]) and not bench.take(Result)


def test_joint_rows_share_a_batch_and_return_their_credit() -> None:
    bench = joint(BOTH)
    names = [(hold(bench, f"a {n}", n), hold(bench, f"b {n}", 20 + n, OTHER)) for n in range(3)]
    texts = tuple(f"{a.hex()} {b.hex()}" for a, b in names)
    rows = tuple(Row((40 + n).to_bytes(16, "big"), size=len(t)) for n, t in enumerate(texts))
    bench.handle(Text("@receiver", ASKED.task_id, rows, texts, origin="client"))
    bench.run()
    (result,) = bench.take(Result)
    assert labels(result) == [joint_answer([f"a {n}", f"b {n}"], TASK.labels) for n in range(3)]
    assert bench.worker.batch_sizes["soft"][3] == 1 and bench.worker.idle
