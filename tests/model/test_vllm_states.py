"""The state tap on a stub of a vLLM decoder; tests/vllm_cpu has the real ones."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from agentwire.errors import ModelError
from agentwire.model.vllm.states import StateTap, embedding_rms

WIDTH = 6


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        residual = hidden_states if residual is None else hidden_states + residual
        return self.mix(residual), residual


class Decoder(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=11)
        self.embed_tokens = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.end_layer = layers

    def embed_input_ids(self, ids: Tensor) -> Tensor:
        return self.embed_tokens(ids) * 2.0

    def forward(self, ids: Tensor) -> Tensor:
        states, residual = self.embed_input_ids(ids), None
        for layer in islice(self.layers, 0, self.end_layer):
            states, residual = layer(torch.arange(len(ids)), states, residual)
        return states + residual


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().requires_grad_(False)


def run(decoder: Decoder, *rows: list[int]) -> Tensor:
    return decoder(torch.tensor([token for row in rows for token in row]))


def test_states_of_each_row_and_no_later_layer(decoder: Decoder) -> None:
    tap = StateTap(SimpleNamespace(model=decoder), 2)
    rows = [[1, 2, 3], [4], [5, 6]]
    with tap.open():
        expected = run(decoder, *rows)  # stops after layer 2
    found = tap.states(rows)
    assert [len(states) for states in found] == [3, 1, 2]
    assert torch.equal(torch.cat(found), expected)
    assert decoder.layers[2].calls == 0
    run(decoder, [1])
    assert decoder.layers[2].calls == 1  # whole again


def test_the_last_layer_can_be_read(decoder: Decoder) -> None:
    tap = StateTap(SimpleNamespace(model=decoder), 3)
    with tap.open():
        expected = run(decoder, [1, 2])
    assert torch.equal(tap.states([[1, 2]])[0], expected)


def test_another_order_of_texts_is_detected(decoder: Decoder) -> None:
    tap = StateTap(SimpleNamespace(model=decoder), 1)
    with tap.open():
        run(decoder, [3, 4], [1, 2])
    with pytest.raises(RuntimeError, match="another order"):
        tap.states([[1, 2], [3, 4]])


def test_a_batch_in_two_steps_is_detected(decoder: Decoder) -> None:
    tap = StateTap(SimpleNamespace(model=decoder), 1)
    with tap.open():
        run(decoder, [1])
        run(decoder, [2])
    with pytest.raises(RuntimeError, match="2 steps"):
        tap.states([[1], [2]])


def test_unreadable_models_and_layers_are_refused(decoder: Decoder) -> None:
    with pytest.raises(ModelError, match="layer 4 does not exist in a model with 3"):
        StateTap(SimpleNamespace(model=decoder), 4)
    with pytest.raises(ModelError, match="not a decoder"):
        StateTap(SimpleNamespace(model=nn.Linear(2, 2)), 1)


def test_rms_is_of_scaled_embeddings(decoder: Decoder) -> None:
    table = decoder.embed_tokens.weight
    assert embedding_rms(SimpleNamespace(model=decoder)) == pytest.approx(
        2 * float(table.pow(2).mean().sqrt())
    )
