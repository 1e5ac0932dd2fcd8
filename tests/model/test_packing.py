"""Packed texts give the same states as padded ones, and models that mix them are detected."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agentwire.model.cpu.packing import can_pack, groups_of, packed_states
from agentwire.model.transformers import trunk

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def tiny(family: str) -> Any:
    """A trunk of two layers with random weights; Gemma's sees 4 tokens back in all but one."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if family == "llama":
        return trunk(LlamaForCausalLM(LlamaConfig(**SIZES)).eval(), 2)
    return trunk(Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=4)).eval(), 2)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([3], [[0]]),
        ([4, 6, 1], [[0, 1], [2]]),
        ([11, 2, 12, 13], [[0], [1], [2], [3]]),
        ([5, 5, 5, 5, 5], [[0, 1], [2, 3], [4]]),
    ],
)
def test_consecutive_texts_share_a_sequence_up_to_a_limit(
    lengths: list[int], groups: list[list[int]]
) -> None:
    assert list(groups_of(lengths, limit=10)) == groups


def test_a_group_may_have_a_limit_of_rows() -> None:
    assert list(groups_of([1] * 5, limit=9, rows=2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("most", [8, 512])
@torch.inference_mode()
def test_packed_states_equal_padded_ones(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups_of, "__defaults__", (most, None))
    short = tiny(family)
    ids = torch.randint(64, (5, 13))
    mask = torch.arange(12)[None, :] < torch.tensor([7, 12, 0, 3, 1])[:, None]
    padded = short(input_ids=ids, use_cache=False).last_hidden_state[:, 1:] * mask[:, :, None]
    torch.testing.assert_close(packed_states(short, ids, mask), padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_real_models_can_pack(family: str) -> None:
    assert can_pack(tiny(family))


class Leaky(nn.Module):
    """Ignores positions: every token attends to all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 8)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids).cumsum(dim=1))


def test_a_model_that_mixes_packed_texts_is_detected() -> None:
    assert not can_pack(Leaky())
