"""Packed reading and generation against padded: same states and tokens, less computation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from agentwire.model.cpu.decoding import continue_greedily, plain_greedy
from agentwire.model.cpu.packed_linear import PackedLinear, can_pack, pack_linears
from agentwire.model.cpu.reading import Prefix, can_pack_behind, fits_window, read_packed
from agentwire.model.texts import TextReader

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
BEFORE = [0, 9, 33, 21]
ROWS = [[5, 6, 7], [8], [11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21], [22, 23, 24, 25]]
FAMILIES = ["llama", "gemma", "qwen"]


def tiny(family: str, **changes: Any) -> Any:
    import transformers as t

    torch.manual_seed(3)
    sizes = {**SIZES, **changes}
    if family == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**sizes)).eval()
    if family == "qwen":  # biases in the attention
        return t.Qwen2ForCausalLM(t.Qwen2Config(**sizes)).eval()
    sizes["tie_word_embeddings"] = False  # tied, a random Gemma says one word again and again
    window = {"sliding_window": 64, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
    return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**{**window, **sizes})).eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[4, 512], ids=["groups", "one group"], autouse=True)
def group_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_packed, "__defaults__", (request.param,))


@torch.inference_mode()
def expected_states(model: Any, before: list[int]) -> torch.Tensor:
    decoder = model.get_decoder()
    alone = [decoder(input_ids=torch.tensor([[*before, *row]])).last_hidden_state for row in ROWS]
    return torch.stack([states[0, -1] for states in alone])


@torch.inference_mode()
def expected_tokens(model: Any, most: int, ends: set[int]) -> list[list[int]]:
    """Greedy decoding without cache or batch."""
    texts = []
    for row in ROWS:
        written: list[int] = []
        while len(written) < most:
            logits = model(input_ids=torch.tensor([BEFORE + row + written])).logits[0, -1]
            token = int(logits.argmax())
            if token in ends:
                break
            written.append(token)
        texts.append(written)
    return texts


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("before", [BEFORE, []], ids=["prefix", "no prefix"])
def test_packed_states_equal_those_of_each_text_alone(family: str, before: list[int]) -> None:
    model = tiny(family)
    reader = TextReader(model, ends=[1], pad=2)
    assert reader.packs
    states = reader.last_states(before, ROWS)
    torch.testing.assert_close(states, expected_states(model, before), rtol=1e-4, atol=1e-5)


def test_no_token_is_computed_for_padding() -> None:
    model = tiny("llama")
    seen: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0] * args[0].shape[1])
    )
    with torch.inference_mode():
        list(read_packed(model, Prefix(model, BEFORE), ROWS))
    hook.remove()
    assert sum(seen) == len(BEFORE) + sum(len(row) for row in ROWS)


def test_texts_beyond_a_sliding_window_are_padded() -> None:
    model = tiny("gemma", sliding_window=12)
    assert fits_window(model, 12) and not fits_window(model, 13)
    reader = TextReader(model, ends=[], pad=2)
    assert reader.packs
    torch.testing.assert_close(
        reader.last_states(BEFORE, ROWS), expected_states(model, BEFORE), rtol=1e-4, atol=1e-5
    )
    assert reader.continued(BEFORE, ROWS, 6) == expected_tokens(model, 6, set())


class Deaf(nn.Module):
    """Ignores the mask: every token attends to all before it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model
        self.config, self.device, self.dtype = model.config, model.device, model.dtype

    def get_input_embeddings(self) -> Any:
        return self._model.get_input_embeddings()

    def get_decoder(self) -> Any:
        decoder = self._model.get_decoder()
        return lambda **inputs: decoder(**{**inputs, "attention_mask": None})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_probe_detects_models_that_mix_packed_texts(family: str) -> None:
    assert can_pack_behind(tiny(family))
    assert not can_pack_behind(Deaf(tiny(family)))
    assert not can_pack_behind(tiny("gemma", sliding_window=4))


# -- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_generation_is_greedy_decoding(family: str) -> None:
    model = tiny(family)
    free = expected_tokens(model, 12, set())
    reader = TextReader(model, ends=[], pad=2)
    assert reader.continued(BEFORE, ROWS, 12) == free
    # An end that rows reach at different steps, so that rows move while others go on.
    lengths = {
        end: {row.index(end) if end in row else 12 for row in free} for row in free for end in row
    }
    ends = {max(lengths, key=lambda end: (len(lengths[end]), end))}
    expected = expected_tokens(model, 12, ends)
    assert len({len(row) for row in expected}) > 2
    assert TextReader(model, ends=ends, pad=2).continued(BEFORE, ROWS, 12) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_padded_generation_agree(family: str) -> None:
    model = tiny(family)
    ends = {t for row in expected_tokens(model, 5, set()) for t in row[3:4]}
    packed = TextReader(model, ends=ends, pad=2)
    padded = TextReader(model, ends=ends, pad=2)
    padded.__dict__["packs"] = False
    assert packed.continued(BEFORE, ROWS, 9) == padded.continued(BEFORE, ROWS, 9)


def test_ended_rows_are_not_computed() -> None:
    model = tiny("llama")
    free = expected_tokens(model, 8, set())
    ends = {free[1][0], free[4][2]}
    lengths = [len(row) for row in expected_tokens(model, 8, ends)]
    batches: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        batches.append(len(states))
        return model.lm_head(states)

    prefix = Prefix(model, BEFORE)
    continue_greedily(model, head, prefix, ROWS, ends=ends, limit=8)
    assert (
        batches
        == [sum(n >= step for n in lengths) for step in range(max(lengths) + 1)][: len(batches)]
    )
    assert len(batches) == min(8, max(lengths) + 1)


def test_a_model_with_penalties_uses_the_library() -> None:
    model = tiny("llama")
    assert plain_greedy(model)
    model.generation_config.repetition_penalty = 1.3
    assert not plain_greedy(model)
    reader = TextReader(model, ends=[], pad=2)
    inputs = torch.tensor([BEFORE + ROWS[2]])
    output = model.generate(
        input_ids=inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    assert reader.continued(BEFORE, [ROWS[2]], 9) == [output[0, inputs.shape[1] :].tolist()]
    assert reader.continued(BEFORE, [ROWS[2]], 9) != [expected_tokens(model, 9, set())[2]]


# -- packed linear layers -------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_layer(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias)
    if not can_pack(linear):
        pytest.skip("no packed product: needs torch with MKL, on an x86 CPU")
    for shape in ((1, 48), (3, 5, 48), (200, 48), (0, 48)):
        x = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=1e-4, atol=1e-5)


def test_other_layers_are_not_packed() -> None:
    assert not can_pack(nn.Linear(8, 8, dtype=torch.bfloat16))
    assert not can_pack(nn.Identity())
    assert not can_pack(nn.Linear(8, 8, device="meta"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_answers_as_before(family: str) -> None:
    model = tiny(family)
    before, written = expected_states(model, BEFORE), expected_tokens(model, 8, set())
    if not pack_linears(model):
        pytest.skip("no packed product: needs torch with MKL, on an x86 CPU")
    assert type(model.lm_head) is nn.Linear
    reader = TextReader(model, ends=[], pad=2)
    reader.inference_only = True
    torch.testing.assert_close(reader.last_states(BEFORE, ROWS), before, rtol=1e-3, atol=1e-4)
    assert reader.continued(BEFORE, ROWS, 8) == written
    assert pack_linears(model) == 0  # once is enough
