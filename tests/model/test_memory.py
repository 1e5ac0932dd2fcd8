"""Estimates of GPU memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentwire.model.static.memory import estimate
from agentwire.spec.agent import AgentSpec, GraphSpec


def spec(model: str, **changes: object) -> AgentSpec:
    values = {"name": "a", "backend": "transformers", "model": model, "dtype": "bfloat16"}
    return AgentSpec.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
    ],
)
def test_weights_of_the_named_models(model: str, parameters: int) -> None:
    found = estimate(spec(model))
    assert found is not None
    assert found.weights == pytest.approx(2 * parameters, rel=1e-3)


def test_graph_memory_is_that_of_the_largest_shape() -> None:
    small, large = (
        estimate(
            spec(
                "random/tiny-llama",
                max_batch=4,
                graphs=GraphSpec(texts=(8, tokens), batches=(1, 4)),
            )
        )
        for tokens in (16, 32)
    )
    assert small is not None and large is not None
    assert large.graphs == 2 * small.graphs > 0
    assert small.shapes == 4
    off = estimate(spec("random/tiny-llama", graphs=GraphSpec(enabled=False)))
    assert off is not None
    assert (off.graphs, off.shapes) == (0, 0)


def test_a_local_model_is_read_from_its_configuration(tiny_llama: Path, tmp_path: Path) -> None:
    found = estimate(spec(str(tiny_llama), folder=str(tiny_llama), dtype="float32"))
    size = (tiny_llama / "model.safetensors").stat().st_size
    assert found is not None
    assert found.weights == pytest.approx(size, rel=0.1)
    assert estimate(spec("x", folder=str(tmp_path))) is None
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    assert estimate(spec("x", folder=str(tmp_path))) is None
    assert estimate(spec("some/model")) is None
