"""The static engine on a CPU (same code, graphs off) against the transformers backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from agentwire.errors import DeviceError
from agentwire.model.backend import Asked, Pipelined
from agentwire.model.prompting import MAX_TEXT_TOKENS
from agentwire.model.sources import random_weights
from agentwire.model.static.engine import StaticBackend
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec, GraphSpec
from agentwire.wire.messages import RelaySpec, TaskSpec

LLAMA, MISTRAL = "random/tiny-llama", "random/tiny-mistral"


def words(count: int, seed: int = 0) -> str:
    return " ".join(f"t{3 + (seed * 131 + i * 17) % 400}" for i in range(count))


LABELS = ("t10", "t20")
TASK = TaskSpec("a", words(24, 1), "{text} " + words(24, 1), LABELS, RelaySpec("t9 {text} t5", 11))
SAME_SHAPE = TaskSpec("b", words(24, 2), "{text} " + words(24, 2), ("t30", "t40"))
OTHER_SHAPE = TaskSpec("c", words(7, 3), words(5, 4) + " {text} " + words(7, 3), (*LABELS, "t50"))
TEXTS = [words(48, 2), words(5, 3), words(1, 4)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(model: str, told: list[str] | None = None, **changes: Any) -> StaticBackend:
    values = {
        "name": "a",
        "backend": "transformers",
        "model": model,
        "weights": "random",
        "engine": "static",
        "graphs": GraphSpec(texts=(8, 48), batches=(1, 4)),
        "max_batch": 4,
        "threads": 1,
        "soft_tokens": (8,),
        **changes,
    }
    spec = AgentSpec.model_validate(values)

    def progress(stage: str, fraction: float) -> None:
        if told is not None:
            told.append(stage)

    return StaticBackend(TransformersBackend.load(spec, progress), spec, progress)


@pytest.fixture(scope="module")
def sender() -> StaticBackend:
    return load(LLAMA)


@pytest.fixture(scope="module")
def bridge(sender: StaticBackend) -> str:
    return sender.add_bridge(Path(random_weights.bridge_folder(MISTRAL, 8, 2))).fingerprint


@pytest.fixture(scope="module")
def receiver() -> StaticBackend:
    return load(MISTRAL)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[1:]])
def test_payloads_equal_the_plain_backends(
    sender: StaticBackend, bridge: str, texts: list[str]
) -> None:
    mine, plain = sender.encode(texts, bridge), sender.plain.encode(texts, bridge)
    assert mine.payload.dtype == np.float16
    assert mine.payload.flags.c_contiguous
    np.testing.assert_allclose(mine.payload, plain.payload, atol=2e-4)
    assert mine.rms is not None and plain.rms is None
    rms = np.sqrt(np.square(mine.payload.astype(np.float32)).mean(axis=-1))
    np.testing.assert_allclose(mine.rms, rms, rtol=1e-4)
    assert set(mine.stages) == {"tokenize", "encode"}  # the bridge is part of the graph


@pytest.mark.parametrize("task", [TASK, SAME_SHAPE, OTHER_SHAPE, TASK])
def test_scores_equal_the_plain_backends(
    sender: StaticBackend, bridge: str, receiver: StaticBackend, task: TaskSpec
) -> None:
    payload = sender.encode(TEXTS, bridge).payload
    for n in (1, 3):
        mine, plain = (b.score_soft(payload[:n], task) for b in (receiver, receiver.plain))
        np.testing.assert_allclose(mine.scores, plain.scores, atol=1e-5)
        assert mine.tokens == plain.tokens
        mine, plain = (b.score_text(TEXTS[:n], task) for b in (receiver, receiver.plain))
        np.testing.assert_allclose(mine.scores, plain.scores, atol=1e-5)
        assert mine.tokens == plain.tokens


def test_tasks_of_one_shape_share_a_graph(receiver: StaticBackend) -> None:
    receiver.prepare(TASK)
    before = len(receiver._runners.values)
    receiver.prepare(SAME_SHAPE)
    assert len(receiver._runners.values) == before


def test_relayed_texts_equal_the_plain_backends(sender: StaticBackend) -> None:
    mine, plain = sender.relay(TEXTS, TASK), sender.plain.relay(TEXTS, TASK)
    assert mine.texts == plain.texts
    assert [len(text.split()) for text in mine.texts] == [11, 11, 11]
    verbatim = TaskSpec("v", "p", "{text}", LABELS, RelaySpec("", 5))
    assert sender.relay(TEXTS, verbatim).texts == TEXTS


def test_a_row_ends_at_the_end_token(sender: StaticBackend) -> None:
    full = sender.relay(TEXTS, TASK).texts[0].split()
    end = next(i for i, word in enumerate(full) if word not in full[:i] and i > 0)
    config = sender.plain.model.generation_config
    ended = load(LLAMA)
    ended.plain.model.generation_config.eos_token_id = int(full[end].removeprefix("t"))
    assert config.eos_token_id is None
    assert ended.relay(TEXTS, TASK).texts[0].split() == full[:end]


def test_batches_without_a_captured_shape_run_eagerly_and_are_counted(
    sender: StaticBackend, bridge: str, receiver: StaticBackend, caplog: pytest.LogCaptureFixture
) -> None:
    long = [words(49)]
    many = [words(3, i) for i in range(5)]
    for i, texts in enumerate((long, many), 1):
        assert sender.begin_encode(texts, bridge) is None
        found = sender.encode(texts, bridge)
        assert set(found.stages) == {"tokenize", "encode", "bridge"}
        assert sender.counts["encode eager"] == 2 * i
    assert sum("no captured shape" in r.message for r in caplog.records) == 1  # told once
    payload = sender.encode(many, bridge).payload
    assert receiver.score_soft(payload, TASK).scores.shape == (5, 2)
    assert receiver.score_text(long, TASK).scores.shape == (1, 2)
    assert receiver.counts["soft eager"] == receiver.counts["text eager"] == 1


def test_texts_of_any_length_are_answered(sender: StaticBackend, bridge: str) -> None:
    texts = ["", words(MAX_TEXT_TOKENS + 50)]
    found = sender.encode(texts, bridge).payload
    np.testing.assert_allclose(found, sender.plain.encode(texts, bridge).payload, atol=2e-4)


def test_jobs_keep_their_results_until_collected(sender: StaticBackend, bridge: str) -> None:
    assert isinstance(sender, Pipelined)
    batches = [[words(7 + i, i), words(3, 50 + i)] for i in range(4)]
    alone = [sender.encode(batch, bridge).payload for batch in batches]
    jobs = [sender.begin_encode(batch, bridge) for batch in batches]
    for job, payload in reversed(list(zip(jobs, alone, strict=True))):
        assert job is not None
        job.wait()
        assert job.done()
        np.testing.assert_array_equal(job.result().payload, payload)
        with pytest.raises(RuntimeError, match="taken already"):
            job.result()


def test_free_text_comes_from_the_plain_backend(receiver: StaticBackend) -> None:
    free = TaskSpec("free", "t4", "{text} t4", max_new_tokens=5)
    seen: list[str] = []

    def watch(row: int, text: str) -> bool:
        seen.append(text)
        return True

    found = receiver.generate(TEXTS[:1], free, watch)
    assert found.texts == receiver.plain.generate(TEXTS[:1], free).texts
    assert seen


def test_progress_reports_the_shapes(tmp_path: Path) -> None:
    told: list[str] = []
    load(LLAMA, told).add_bridge(Path(random_weights.bridge_folder(MISTRAL, 8, 2)))
    assert told.count("shapes") == 5  # four shapes, and the end


def test_too_little_memory_for_the_shapes_says_which_setting_to_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = load(LLAMA)

    def encoder(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(small, "_encoder", encoder)
    with pytest.raises(DeviceError, match="4 rows of 48 tokens") as error:
        small.add_bridge(Path(random_weights.bridge_folder(MISTRAL, 8, 2)))
    assert "max_tokens" in error.value.hint


def test_the_summary_counts_both_paths(sender: StaticBackend, bridge: str) -> None:
    before = sender.counts.copy()
    sender.encode(TEXTS, bridge)
    sender.encode([words(60)], bridge)
    assert sender.counts["encode"] == before["encode"] + 1
    assert f"encode {sender.counts['encode']}" in sender.summary()
    assert f"encode eager {sender.counts['encode eager']}" in sender.summary()


def test_a_reader_bridge_runs_on_the_plain_path(
    sender: StaticBackend, receiver: StaticBackend, tmp_path: Path
) -> None:
    tiny.write_reader(tmp_path, sender.identity, receiver.identity)
    bridge = sender.add_bridge(tmp_path).fingerprint
    receiver.add_reader(tmp_path)
    assert sender.begin_encode(TEXTS, bridge) is None
    encoded = sender.encode(TEXTS, bridge)
    assert encoded.sizes == [8, 4, 2]
    payload = sender.encode(TEXTS, bridge, 4).payload
    task = TaskSpec("q", "{question} t5", "{text} {question} t5", LABELS)
    asked = Asked(["t7", "t8 t9", "t7 t8 t9"], bridge)
    mine, plain = (b.score_soft(payload, task, asked) for b in (receiver, receiver.plain))
    np.testing.assert_array_equal(mine.scores, plain.scores)
    text = receiver.score_text(TEXTS, task, Asked(asked.questions))
    np.testing.assert_array_equal(
        text.scores, receiver.plain.score_text(TEXTS, task, Asked(asked.questions)).scores
    )
    free = TaskSpec("q", "{question} t5", "{text}", max_new_tokens=4)
    assert receiver.generate_soft(payload, free, None, asked).texts
