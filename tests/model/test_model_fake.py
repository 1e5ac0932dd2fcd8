from pathlib import Path

import numpy as np
import pytest

from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.backend import Backend
from agentwire.model.backends.fake import KIND
from agentwire.model.fake import FakeBackend, answer, fingerprint
from agentwire.spec.agent import AgentSpec, FakeModel
from agentwire.wire.messages import RelaySpec, TaskSpec

TASK = TaskSpec("t", "Answer:", "{text}\nAnswer:", ("good", "bad", "mixed"))
TEXTS = [f"text number {i}" for i in range(64)]


def backend(**settings: object) -> FakeBackend:
    return FakeBackend("sender", FakeModel.model_validate(settings))


def bridge(model: FakeBackend) -> str:
    return model.add_bridge(Path("fake:receiver")).fingerprint


def test_soft_tokens_and_text_give_the_same_answer() -> None:
    sender = backend()
    receiver = FakeBackend("receiver", FakeModel())
    payload = sender.encode(TEXTS, bridge(sender)).payload
    soft = receiver.score_soft(payload, TASK).scores
    text = receiver.score_text(TEXTS, TASK).scores
    assert soft.shape == (64, 3) and soft.dtype == np.float32
    np.testing.assert_array_equal(soft, text)
    np.testing.assert_allclose(np.exp(soft).sum(axis=1), 1.0, rtol=1e-5)
    labels = [TASK.labels[i] for i in soft.argmax(axis=1)]
    assert labels == [answer(t, TASK.labels) for t in TEXTS]
    assert set(labels) == set(TASK.labels)


def test_payload_shape_dtype_and_rms() -> None:
    sender = backend(width=64)
    payload = sender.encode(TEXTS, bridge(sender)).payload
    assert payload.shape == (64, 8, 64) and payload.dtype == np.float16
    assert payload.flags.c_contiguous
    rms = np.sqrt((payload.astype(np.float64) ** 2).mean(axis=2))
    assert (rms > 0.7).all() and (rms < 1.3).all()


def test_results_do_not_depend_on_the_batch() -> None:
    sender = backend()
    name = bridge(sender)
    together = sender.encode(TEXTS, name).payload
    alone = np.concatenate([sender.encode([t], name).payload for t in TEXTS])
    np.testing.assert_array_equal(together, alone)


def test_faults() -> None:
    sender = backend(raise_on="boom", nan_on="poison")
    name = bridge(sender)
    with pytest.raises(RuntimeError, match="fake model raises"):
        sender.encode(["fine", "boom here"], name)
    payload = sender.encode(["fine", "some poison"], name).payload
    assert np.isfinite(payload[0]).all() and not np.isfinite(payload[1]).all()


def test_a_receiver_fails_on_the_payload_of_its_trigger_only() -> None:
    sender, receiver = backend(), FakeBackend("receiver", FakeModel(raise_on="boom"))
    name = bridge(sender)
    receiver.score_soft(sender.encode(["boom here"], name).payload, TASK)
    with pytest.raises(RuntimeError, match="fake model raises"):
        receiver.score_soft(sender.encode(["boom"], name).payload, TASK)


def test_load_reports_progress_and_is_a_backend() -> None:
    seen: list[tuple[str, float]] = []
    spec = AgentSpec(name="a", backend="fake", model="sender", device="cpu")
    model: Backend = KIND.load(spec, lambda stage, fraction: seen.append((stage, fraction)))
    assert seen[0] == ("load", 0.0) and seen[-1] == ("load", 1.0)
    assert model.identity.fingerprint == fingerprint("sender") != fingerprint("receiver")


def test_bridges() -> None:
    sender = backend()
    identity = sender.add_bridge(Path("fake:receiver"))
    assert identity.sender == fingerprint("sender")
    assert identity.receiver == fingerprint("receiver")
    assert (identity.soft_tokens, identity.width, identity.prompts) == (8, 16, ("any",))
    assert sender.add_bridge(Path("fake:receiver:abc")).prompts == ("abc",)
    with pytest.raises(BridgeError):
        sender.add_bridge(Path("nowhere/at-all"))


def test_text_channel() -> None:
    sender = backend()
    summary = TaskSpec("t", "p", "{text}", ("a", "b"), RelaySpec("Sum up: {text}", 3))
    assert sender.relay(["one two three four"], summary).texts == ["one two three"]
    assert sender.relay(["one two three four"], TASK).texts == ["one two three four"]
    free = TaskSpec("t", "p", "{text}", max_new_tokens=3)
    assert sender.generate(["one two three four"], free).texts == ["sender: one two"]


def test_labels_must_differ() -> None:
    with pytest.raises(ScenarioError):
        backend().prepare(TaskSpec("t", "p", "{text}", ("same", "same")))
