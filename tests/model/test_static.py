"""The static forward pass against the transformers model that it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from agentwire.model.sources import random_weights
from agentwire.model.static.decoder import StaticDecoder, UnsupportedModel
from agentwire.model.static.ops import PlainOps
from agentwire.model.transformers import load_model, trunk

CPU = torch.device("cpu")
IDS = torch.randint(3, 400, (3, 17), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "gemma", "mistral"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_llama: Path, tiny_gemma: Path) -> Any:
    """A Llama, a Gemma 3 (norms around everything, windows, scaled embeddings), a Mistral."""
    if request.param == "mistral":
        return random_weights.build("random/tiny-mistral", torch.float32, CPU)
    folder = tiny_llama if request.param == "llama" else tiny_gemma
    return load_model(folder, dtype=torch.float32, device=CPU)


@torch.inference_mode()
def reference(model: Any, ids: torch.Tensor, layers: int | None = None) -> torch.Tensor:
    """States of ``ids`` behind a BOS, after some layers (not normed) or all (normed)."""
    opened = torch.cat([torch.zeros(len(ids), 1, dtype=torch.long), ids], dim=1)
    decoder = model.get_decoder() if layers is None else trunk(model, layers)
    states: torch.Tensor = decoder(input_ids=opened, use_cache=False).last_hidden_state[:, 1:]
    return states


@torch.inference_mode()
def test_the_trunk_gives_the_states_of_the_layer(model: Any) -> None:
    expected = reference(model, IDS, 2)
    decoder = StaticDecoder(model, PlainOps())
    found = decoder.trunk(IDS, 2, decoder.prefix([0]))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_only_the_last_position_of_ragged_rows_is_computed(model: Any) -> None:
    last = torch.tensor([16, 4, 0])
    expected = reference(model, IDS)[torch.arange(3), last]
    decoder = StaticDecoder(model, PlainOps())
    found = decoder.last(decoder.embed(IDS), last, decoder.prefix([0]))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_prefix_equals_reading_it_in_each_row(model: Any) -> None:
    head, tail = IDS[:1, :9], IDS[:, 9:]
    whole = torch.cat([head.expand(3, -1), tail], dim=1)
    last = torch.full((3,), tail.shape[1] - 1)
    expected = reference(model, whole)[:, -1]
    decoder = StaticDecoder(model, PlainOps())
    prefix = decoder.prefix([0, *head[0].tolist()])
    found = decoder.last(decoder.embed(tail), last, prefix)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_without_a_prefix_rows_begin_with_their_own_first_token(model: Any) -> None:
    expected = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state[:, -1]
    decoder = StaticDecoder(model, PlainOps())
    assert decoder.prefix([]) == ()
    found = decoder.last(decoder.embed(IDS), torch.full((3,), 16), ())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_steps_over_a_cache_go_on_where_each_row_ends(model: Any) -> None:
    lengths = torch.tensor([17, 5, 1])
    more = IDS[:, :4] + 1
    rows = [torch.cat([IDS[i, :n], more[i]])[None] for i, n in enumerate(lengths.tolist())]
    expected = torch.cat([reference(model, row)[:, -1] for row in rows])
    decoder = StaticDecoder(model, PlainOps())
    prefix, cache = decoder.prefix([0]), decoder.cache(3, 1 + 17 + 4)
    decoder.last(
        decoder.embed(IDS), lengths - 1, prefix, [(k[:, :18], v[:, :18]) for k, v in cache]
    )
    for step in range(4):
        found = decoder.step(more[:, step], 1 + lengths + step, cache)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_the_model_still_computes_the_same_with_fused_weights(model: Any) -> None:
    before = reference(model, IDS)
    decoder = StaticDecoder(model, PlainOps())
    assert torch.equal(reference(model, IDS), before)
    projection = model.get_decoder().layers[0].self_attn.q_proj.weight
    assert projection.data_ptr() == decoder.layers[0].qkv.data_ptr()  # shared, not copied


def test_unsupported_models_are_refused() -> None:
    model = random_weights.build("random/tiny-llama", torch.float32, CPU)
    model.config.hidden_act = "relu"
    with pytest.raises(UnsupportedModel, match="relu"):
        StaticDecoder(model, PlainOps())
    model.config.hidden_act = "silu"
    model.get_decoder().layers[0].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match="up_proj"):
        StaticDecoder(model, PlainOps())
