"""The static engine on a GPU: Triton kernels, captured graphs, streams. Skipped without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agentwire.model.sources import random_weights
from agentwire.model.static.engine import StaticBackend
from agentwire.model.static.ops import PlainOps, Rotary
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec, GraphSpec
from agentwire.wire.messages import RelaySpec, TaskSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no GPU that torch can use: run them on a machine with one",
    ),
]
DEVICES = [f"cuda:{i}" for i in range(min(2, torch.cuda.device_count()))] or ["cuda:0"]
LLAMA, MISTRAL = "random/tiny-llama", "random/tiny-mistral"


def words(count: int, seed: int = 0) -> str:
    return " ".join(f"t{3 + (seed * 131 + i * 17) % 400}" for i in range(count))


TASK = TaskSpec(
    "gpu", words(24, 1), "{text} " + words(24, 1), ("t10", "t20"), RelaySpec("{text} t5", 50)
)
TEXTS = [words(48, 2), words(5, 3), words(1, 4), words(31, 5)]


def backend(model: str, device: str, **changes: object) -> StaticBackend:
    values = {
        "name": "a",
        "backend": "transformers",
        "model": model,
        "weights": "random",
        "dtype": "bfloat16",
        "device": device,
        "graphs": GraphSpec(texts=(16, 48), batches=(1, 4)),
        "max_batch": 4,
        "soft_tokens": (8,),
        **changes,
    }
    spec = AgentSpec.model_validate(values)
    plain = TransformersBackend.load(spec, lambda *_: None)
    return StaticBackend(plain, spec, lambda *_: None)


def near(a: torch.Tensor, b: torch.Tensor, most: float = 2e-2) -> None:
    assert torch.isfinite(a).all()
    error = (a.float() - b.float()).norm() / b.float().norm()
    assert float(error) < most, float(error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head", [16, 128])
def test_kernels_equal_plain_operations(device: str, head: int) -> None:
    from agentwire.model.static.triton_ops import FusedOps

    torch.manual_seed(0)
    plain, fused = PlainOps(), FusedOps()
    h, g, n, t, p, wide = 8, 2, 3, 33, 2, 1000

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    with torch.cuda.device(device), torch.inference_mode():
        x, residual, weight = draw(5, wide), draw(5, wide), draw(wide)
        near(fused.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
        one, other = residual.clone(), residual.clone()
        near(fused.add_rms_norm(x, one, weight, 1e-5), plain.add_rms_norm(x, other, weight, 1e-5))
        assert torch.equal(one, other)
        near(fused.gated(x, gelu=False), plain.gated(x, gelu=False))
        qkv = draw(n, t, (h + 2 * g) * head)
        angle = torch.rand(64, head // 2, device=device)
        table = Rotary(angle.cos(), angle.sin())
        prefix = (draw(p, g, head), draw(p, g, head))
        caches = [(draw(n, p + t, g, head), draw(n, p + t, g, head)) for _ in range(2)]
        q, r = (
            ops.rotary(qkv, table, cache, prefix, None)
            for ops, cache in zip((fused, plain), caches, strict=True)
        )
        near(q, r)
        near(caches[0][0], caches[1][0])
        near(caches[0][1], caches[1][1])
        scale = head**-0.5
        near(fused.attend(q, caches[0], scale, None), plain.attend(r, caches[1], scale, None))
        lengths = torch.tensor([1, 20, p + t], device=device)
        mine = fused.attend_one(q[:, 0], caches[0], lengths, scale, None)
        near(mine, plain.attend_one(r[:, 0], caches[1], lengths, scale, None))


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_equal_the_plain_model(device: str) -> None:
    sender, receiver = backend(LLAMA, device), backend(MISTRAL, device)
    bridge = sender.add_bridge(Path(random_weights.bridge_folder(MISTRAL, 8, 2))).fingerprint
    receiver.prepare(TASK)
    # One row has a second graph, which moves its data itself.
    stage = 2  # the warmup graph
    assert sender.device.captured == 4 + 2 + stage
    assert receiver.device.captured == 2 + 1 + stage
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:3]):
        mine, plain = sender.encode(texts, bridge), sender.plain.encode(texts, bridge)
        near(torch.tensor(mine.payload), torch.tensor(plain.payload))
        assert mine.rms is not None
        rms = np.sqrt(np.square(mine.payload.astype(np.float32)).mean(axis=-1))
        np.testing.assert_allclose(mine.rms, rms, rtol=1e-3)
        sender.warm_up(texts)
        receiver.warm_up(())
        for task in (TASK, TaskSpec("other", words(24, 9), "{text} t1", ("t30", "t40"))):
            soft = receiver.score_soft(mine.payload, task).scores
            np.testing.assert_allclose(
                soft, receiver.plain.score_soft(mine.payload, task).scores, atol=0.02
            )
        read = receiver.score_text(texts, TASK).scores
        np.testing.assert_allclose(read, receiver.plain.score_text(texts, TASK).scores, atol=0.02)
    written = sender.relay(TEXTS, TASK).texts
    assert [len(text.split()) for text in written] == [50] * 4
    assert sender.counts["encode eager"] == receiver.counts["soft eager"] == 0


def test_a_single_row_gets_the_same_result_as_in_a_batch() -> None:
    sender = backend(LLAMA, DEVICES[0])
    bridge = sender.add_bridge(Path(random_weights.bridge_folder(MISTRAL, 8, 2))).fingerprint
    texts = [words(20 + i, i) for i in range(6)]
    alone = [sender.encode([text], bridge).payload for text in texts]
    assert sender.device.running == 0
    jobs = [sender.begin_encode([text], bridge) for text in texts]  # only the first one is alone
    assert sender.device.running == 6
    for job, payload in zip(jobs, alone, strict=True):
        assert job is not None
        np.testing.assert_array_equal(job.result().payload, payload)


def test_batches_in_flight_do_not_mix_results() -> None:
    sender = backend(LLAMA, DEVICES[0])
    bridge = sender.add_bridge(Path(random_weights.bridge_folder(MISTRAL, 8, 2))).fingerprint
    batches = [[words(20 + i, i), words(3 + i, 50 + i)] for i in range(12)]
    alone = [sender.encode(batch, bridge).payload for batch in batches]
    running = []
    for i, batch in enumerate(batches):
        job = sender.begin_encode(batch, bridge)
        assert job is not None
        running.append((i, job))
        if len(running) == 3:
            at, job = running.pop(0)
            np.testing.assert_array_equal(job.result().payload, alone[at])
    for at, job in running:
        np.testing.assert_array_equal(job.result().payload, alone[at])
