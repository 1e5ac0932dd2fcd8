"""vLLM against transformers on the small pair, in one process, with a few texts and bad input.

`bench/vllm_agreement.py` compares whole splits through processes and bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import patience

from agentwire.config import Config
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.model.sources.lookup import locate
from agentwire.spec.agent import AgentSpec, OutgoingBridge
from agentwire.task.definitions import load_definition
from agentwire.wire.messages import Decoding, RelaySpec, TaskSpec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(patience(600))]

SENDER, RECEIVER = "smollm2-135m-instruct", "gemma-3-270m"
BRIDGE = Path(__file__).resolve().parents[2] / "bridges" / f"{SENDER}--{RECEIVER}--sst2"
TEXTS = [
    "A moving, funny film.",
    "Dreadful, and far too long: nothing in it is worth the two hours that it takes.",
    "ok",
    "The cast is wonderful <|im_end|> and the script is not.",
    "",
]
TASK = load_definition("sst2").spec()
FREE = TaskSpec(
    name="free",
    prompt="\nIn one sentence:",
    text_prompt="Tell me about this film: {text}\n",
    relay=RelaySpec("Sum up this review in a few words.\n\n{text}", 12),
    max_new_tokens=12,
)
OFF = 0.002  # of a probability: fp32 on both sides, in another order of summation


def spec(model: str, backend: str, *, bridge: bool = False) -> AgentSpec:
    site = locate(model, config=Config.from_env())
    if not site.present:
        pytest.skip(f"{model} is not in the cache (`agentwire models pull {model}`)")
    out = OutgoingBridge(wire="a->b", receiver="b", folder=str(BRIDGE))
    return AgentSpec.model_validate(
        {
            "name": "a",
            "backend": backend,
            "model": model,
            "folder": str(site.folder),
            "bridges": [out.model_dump()] if bridge else [],
        }
    )


def both(model: str, *, bridge: bool = False) -> tuple[Any, Any]:
    """The vLLM backend of a model, and the transformers backend."""
    from agentwire.agent.service import load_backend

    engines = ("vllm", "transformers")
    ours, theirs = (
        load_backend(spec(model, engine, bridge=bridge), lambda stage, fraction: None)
        for engine in engines
    )
    return ours, theirs


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Any, Any]]:
    yield both(RECEIVER)


@pytest.fixture(scope="module")
def sender() -> Iterator[tuple[Any, Any]]:
    yield both(SENDER, bridge=True)


@pytest.fixture(scope="module")
def payload(sender: tuple[Any, Any]) -> Any:
    """Soft tokens of ``TEXTS`` by transformers."""
    _, theirs = sender
    return theirs.encode(TEXTS, theirs.add_bridge(BRIDGE).fingerprint).payload


def probabilities(scored: Any) -> Any:
    return np.exp(scored.scores)


def test_both_engines_have_the_same_identity(
    sender: tuple[Any, Any], receiver: tuple[Any, Any]
) -> None:
    for ours, theirs in (sender, receiver):
        a, b = ours.identity, theirs.identity
        assert (a.name, a.fingerprint, a.width, a.layers) == (
            b.name,
            b.fingerprint,
            b.width,
            b.layers,
        )
        assert a.embedding_rms == pytest.approx(b.embedding_rms, rel=1e-5)


def test_a_sender_makes_the_same_soft_tokens(sender: tuple[Any, Any], payload: Any) -> None:
    ours, _ = sender
    bridge = ours.add_bridge(BRIDGE).fingerprint
    batch = ours.encode(TEXTS, bridge).payload
    assert batch.shape == payload.shape and batch.dtype == np.float16
    np.testing.assert_allclose(batch, payload, atol=0.02)
    alone = np.concatenate([ours.encode([text], bridge).payload for text in TEXTS])
    np.testing.assert_allclose(alone, batch, atol=0.02)


def test_more_texts_than_one_step_takes(sender: tuple[Any, Any]) -> None:
    ours, theirs = sender
    texts = [f"Film number {i} is {'good' if i % 3 else 'bad'}." for i in range(40)]
    fingerprint = ours.add_bridge(BRIDGE).fingerprint
    expected = theirs.encode(texts, theirs.add_bridge(BRIDGE).fingerprint).payload
    np.testing.assert_allclose(ours.encode(texts, fingerprint).payload, expected, atol=0.02)


def test_a_receiver_scores_soft_tokens_the_same(receiver: tuple[Any, Any], payload: Any) -> None:
    ours, theirs = receiver
    found, expected = ours.score_soft(payload, TASK), theirs.score_soft(payload, TASK)
    np.testing.assert_allclose(probabilities(found), probabilities(expected), atol=OFF)
    assert found.tokens == expected.tokens
    assert np.ptp(probabilities(found)[:, 1]) > 0.2  # other soft tokens, other answers


def test_bad_soft_tokens_do_not_reach_the_engine(receiver: tuple[Any, Any], payload: Any) -> None:
    ours, _ = receiver
    before = ours.score_soft(payload, TASK).scores
    for spoil in (np.nan, np.inf):
        bad = payload.copy()
        bad[1, 3, 5] = spoil
        with pytest.raises(RemoteProtocolError) as caught:
            ours.score_soft(bad, TASK)
        assert caught.value.code is NackCode.BAD_PAYLOAD
    for shape in ((1, 8, 639), (1, 8, 641), (8, 640), (0, 8, 640)):
        with pytest.raises(RemoteProtocolError) as caught:
            ours.score_soft(np.ones(shape, np.float16), TASK)
        assert caught.value.code is NackCode.BAD_PAYLOAD
    with pytest.raises(RemoteProtocolError) as caught:
        ours.score_soft(np.ones((1, 5000, 640), np.float16), TASK)
    assert caught.value.code is NackCode.TOO_LARGE
    np.testing.assert_allclose(ours.score_soft(payload, TASK).scores, before, atol=1e-5)


def test_a_cached_prefix_does_not_mix_up_soft_tokens(
    receiver: tuple[Any, Any], payload: Any
) -> None:
    """Soft tokens share one placeholder id: a cache keyed by ids alone would mix up rows."""
    ours, theirs = receiver
    # Long enough to fill whole blocks of the cache.
    long = [np.tile(payload[i : i + 1], (1, 40, 1)) for i in (0, 1, 0)]
    found = [probabilities(ours.score_soft(p, TASK)) for p in long]
    expected = [probabilities(theirs.score_soft(p, TASK)) for p in long]
    np.testing.assert_allclose(found, expected, atol=OFF)
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_text_is_scored_relayed_and_continued_the_same(
    role: str, request: pytest.FixtureRequest
) -> None:
    ours, theirs = request.getfixturevalue(role)
    np.testing.assert_allclose(
        probabilities(ours.score_text(TEXTS, TASK)),
        probabilities(theirs.score_text(TEXTS, TASK)),
        atol=OFF,
    )
    assert ours.relay(TEXTS, FREE).texts == theirs.relay(TEXTS, FREE).texts
    found, expected = ours.generate(TEXTS[:2], FREE), theirs.generate(TEXTS[:2], FREE)
    assert found.texts == expected.texts
    assert found.tokens == expected.tokens


def test_soft_tokens_are_continued_the_same(receiver: tuple[Any, Any], payload: Any) -> None:
    ours, theirs = receiver
    assert ours.generate_soft(payload, FREE).texts == theirs.generate_soft(payload, FREE).texts


def test_answers_are_streamed_stopped_and_sampled(receiver: tuple[Any, Any]) -> None:
    ours, _ = receiver
    pieces: dict[int, str] = {0: "", 1: ""}

    def watch(row: int, text: str) -> bool:
        pieces[row] += text
        return row != 1  # nobody waits for the second row any more

    whole = ours.generate(TEXTS[:2], FREE, watch)
    assert whole.texts[0].startswith(pieces[0]) and pieces[0]
    assert whole.tokens[1][1] == 1
    word = whole.texts[0].split()[1]
    stopped = TaskSpec(
        **{f: getattr(FREE, f) for f in ("name", "prompt", "text_prompt", "max_new_tokens")},
        decoding=Decoding(stop=(word,)),
    )
    assert word not in ours.generate(TEXTS[:1], stopped).texts[0]
    drawn = TaskSpec(
        **{f: getattr(FREE, f) for f in ("name", "prompt", "text_prompt", "max_new_tokens")},
        decoding=Decoding(temperature=1000, seed=7),
    )
    first = ours.generate([TEXTS[0]] * 2, drawn).texts
    assert first == ours.generate([TEXTS[0]] * 2, drawn).texts  # the seed decides


def test_a_text_that_is_too_long_is_refused(receiver: tuple[Any, Any]) -> None:
    ours, _ = receiver
    plain = TaskSpec("long", "", "{text}", max_new_tokens=4, form="plain")
    with pytest.raises(RemoteProtocolError) as caught:
        ours.generate(["word " * 5000], plain)
    assert caught.value.code is NackCode.TOO_LARGE
    assert ours.generate(["word"], plain).texts
