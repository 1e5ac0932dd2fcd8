"""Questions of rows through real processes and sockets, with fake models."""

from __future__ import annotations

import pytest
from fake_run import fake_runtime

from agentwire.errors import InputError, NackCode, RequestError, ScenarioError
from agentwire.model.fake import READER_SIZES, confidence, text_hash
from agentwire.runtime import Reply
from agentwire.wire.messages import Channel

pytestmark = pytest.mark.integration

READER = "fake:receiver-model:reader"
PROMPT = "\nQuestion: {question}\nAnswer:"
TEXTS = ["one two three", "word " * 20 + "end", "word " * 200]
WIDTH = 16


def answers(outcomes: object) -> list[str | None]:
    assert isinstance(outcomes, list)
    return [outcome.text if isinstance(outcome, Reply) else str(outcome) for outcome in outcomes]


async def test_rows_of_one_call_have_their_own_questions_and_sizes() -> None:
    async with fake_runtime(bridge=READER) as wire:
        questions = ["Who?", "When?", "Where in {text} <eos>?"]
        outcomes = await wire.send_batch(
            "sender", "receiver", TEXTS, prompt=PROMPT, question=questions, generate=20
        )
        expected = [
            f"receiver-model: soft {text_hash(text):08x} {question}"
            for text, question in zip(TEXTS, questions, strict=True)
        ]
        assert answers(outcomes) == expected
        assert [o.payload_bytes for o in outcomes if isinstance(o, Reply)] == [
            m * WIDTH * 2 for m in READER_SIZES
        ]
        many = [
            outcome
            async for batch in wire.send_many(
                "sender",
                "receiver",
                iter(TEXTS),
                batch_size=2,
                prompt=PROMPT,
                question=questions,
                generate=20,
            )
            for outcome in batch
        ]
        assert answers(many) == expected
        one = await wire.send_batch(
            "sender", "receiver", TEXTS, prompt=PROMPT, question="Who?", labels=["yes", "no"]
        )
        text = await wire.direct_batch(
            "receiver", TEXTS, prompt=PROMPT, question="Who?", labels=["yes", "no"]
        )
        assert [o.scores for o in one if isinstance(o, Reply)] == [
            o.scores for o in text if isinstance(o, Reply)
        ]
        assert len(one) == len(text) == 3


async def test_a_kept_text_is_asked_again_and_again() -> None:
    async with fake_runtime(bridge=READER) as wire:
        kept = await wire.keep("sender", "receiver", TEXTS[1])
        assert kept.channel is Channel.SOFT
        for question in ("Who?", "When?"):
            reply = await wire.send(
                "sender", "receiver", kept, prompt=PROMPT, question=question, generate=9
            )
            assert reply.text == f"receiver-model: soft {text_hash(TEXTS[1]):08x} {question}"
        pieces = [
            event
            async for event in wire.stream(
                "sender", "receiver", kept, prompt=PROMPT, question="Why?", generate=9
            )
        ]
        assert "".join(map(str, pieces[:-1])).endswith(" Why?")
        kept = [await wire.keep("sender", "receiver", text) for text in TEXTS]
        outcomes = await wire.send_batch(
            "sender", "receiver", kept, prompt=PROMPT, question=["a", "b", "c"], generate=9
        )
        assert [text and text[-1] for text in answers(outcomes)] == ["a", "b", "c"]


async def test_a_question_goes_with_the_relayed_text() -> None:
    async with fake_runtime() as wire:
        reply = await wire.send(
            "sender", "receiver", "one two", prompt=PROMPT, question="Who?", generate=9
        )
        assert (reply.channel, reply.reason) == (Channel.TEXT, NackCode.UNSUPPORTED)
        assert reply.text == "receiver-model: one two Who?"


async def test_questions_that_do_not_fit_are_refused() -> None:
    async with fake_runtime(bridge=READER) as wire:
        options = {"prompt": PROMPT, "generate": 9}
        outcomes = await wire.send_batch(
            "sender", "receiver", ["a", "b"], question=["q" * 2049, "Who?"], **options
        )
        assert isinstance(outcomes[0], RequestError) and isinstance(outcomes[1], Reply)
        assert outcomes[0].code is NackCode.TOO_LARGE and "2,048" in outcomes[0].message
        for question, words in ((None, "no question"), ("", "empty"), (["a", "b"], "2 questions")):
            with pytest.raises(ScenarioError, match=words):
                await wire.send("sender", "receiver", "a", question=question, **options)
        with pytest.raises(ScenarioError, match="has no"):
            await wire.send("sender", "receiver", "a", prompt="Go on:", question="Who?")


async def test_an_unsure_answer_is_asked_again_with_the_text() -> None:
    questions = [f"q{i}?" for i in range(12)]
    soft = [f"receiver-model: soft {text_hash('one two'):08x} {q}" for q in questions]
    unsure = [confidence(answer) < -0.5 for answer in soft]
    assert len({*unsure}) == 2
    options = {"prompt": PROMPT, "question": questions, "generate": 9, "relay": "verbatim"}
    async with fake_runtime(bridge=READER, wire={"fallback_below": -0.5}) as wire:
        kept = await wire.keep("sender", "receiver", "one two")
        for content in ("one two", kept):
            replies = await wire.send_batch("sender", "receiver", [content] * 12, **options)
            for reply, known, text, question in zip(replies, soft, unsure, questions, strict=True):
                assert isinstance(reply, Reply)
                if text:
                    assert (reply.channel, reply.reason) == (Channel.TEXT, "unsure")
                    assert reply.text == f"receiver-model: one two {question}"
                    assert reply.confidence is None
                else:
                    assert (reply.text, reply.reason) == (known, "")
                    assert reply.confidence == pytest.approx(confidence(known))
        # Refused, and already shown.
        refused = await wire.send_batch(
            "sender", "receiver", ["one two"] * 12, fallback="error", **options
        )
        assert answers(refused) == soft
        question = questions[unsure.index(True)]
        pieces = [p async for p in wire.stream(
            "sender", "receiver", kept, prompt=PROMPT, question=question, generate=9
        )]  # fmt: skip
        assert isinstance(pieces[-1], Reply) and pieces[-1].channel is Channel.SOFT
        assert pieces[-1].confidence is not None and pieces[-1].confidence < -0.5


async def test_a_reply_about_a_kept_passage_has_its_text() -> None:
    async with fake_runtime(bridge=READER) as wire:
        kept = await wire.keep("sender", "receiver", "one two")
        options = {"prompt": PROMPT, "question": "Who?", "generate": 9}
        assert (await wire.send("sender", "receiver", kept, **options)).expand() == "one two"
        reply = await wire.send("sender", "receiver", "one two", **options)
        with pytest.raises(InputError, match="not about a kept passage"):
            reply.expand()
