"""The fake device: a pipelined fake backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agentwire.model.backend import Pipelined
from agentwire.model.fake import FakeBackend, FakeDevice
from agentwire.spec.agent import FakeModel
from agentwire.wire.messages import TaskSpec

TASK = TaskSpec("t", "Answer:", "{text}\nAnswer:", ("good", "bad", "mixed"))
TEXTS = ["one", "two", "three"]


def test_the_fake_device_answers_like_the_fake_backend() -> None:
    device, plain = FakeDevice("a", FakeModel()), FakeBackend("a", FakeModel())
    assert isinstance(device, Pipelined) and not isinstance(plain, Pipelined)
    bridge = device.add_bridge(Path("fake:b")).fingerprint
    plain.add_bridge(Path("fake:b"))
    encoded = device.begin_encode(TEXTS, bridge).result()
    np.testing.assert_array_equal(encoded.payload, plain.encode(TEXTS, bridge).payload)
    soft = device.begin_score_soft(encoded.payload, TASK).result().scores
    text = device.begin_score_text(TEXTS, TASK).result().scores
    np.testing.assert_array_equal(soft, plain.score_soft(encoded.payload, TASK).scores)
    np.testing.assert_array_equal(text, soft)
    assert device.summary() == "encode 1, soft 1, text 1"


def test_jobs_start_at_once_and_finish_in_order() -> None:
    device = FakeDevice("a", FakeModel(encode_ms=60_000.0, decode_ms=60_000.0))
    bridge = device.add_bridge(Path("fake:b")).fingerprint
    jobs = [device.begin_encode(TEXTS, bridge), device.begin_score_text(TEXTS, TASK)]
    assert not any(job.done() for job in jobs)
    quick = FakeDevice("a", FakeModel(encode_ms=1.0))
    quick.add_bridge(Path("fake:b"))
    job = quick.begin_encode(TEXTS, bridge)
    job.wait()
    assert job.done() and job.result().stages == {"encode": 1.0}
