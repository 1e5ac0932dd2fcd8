"""Random weights: exact shapes, the same numbers each time, and a name that says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from agentwire.errors import BridgeError, ModelError
from agentwire.model.sources import random_weights

LLAMA, MISTRAL = "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"
CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "parameters"), [(LLAMA, 8_030_261_248), (MISTRAL, 7_248_023_552)])
def test_the_named_models_have_their_published_size(name: str, parameters: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**random_weights.shape(name)))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_model_is_the_same_each_time_and_finite() -> None:
    first, second = (
        random_weights.build("random/tiny-llama", torch.bfloat16, CPU) for _ in range(2)
    )
    assert first.dtype == torch.bfloat16
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        logits = first(input_ids=ids).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_rotary_tables_are_those_of_the_configuration() -> None:
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = random_weights.build("random/tiny-llama", torch.float32, CPU)
    config = AutoConfig.for_model(**random_weights.shape("random/tiny-llama"))
    expected = LlamaRotaryEmbedding(config).inv_freq
    assert torch.equal(model.get_decoder().rotary_emb.inv_freq, expected)


def test_generation_runs_to_its_full_length() -> None:
    model = random_weights.build("random/tiny-llama", torch.float32, CPU)
    output = model.generate(torch.tensor([[1, 5]]), max_new_tokens=40, do_sample=False)
    assert output.shape == (1, 42)


def test_a_word_is_one_token_and_decodes_to_itself() -> None:
    tokenizer = random_weights.RandomTokenizer("random/tiny-llama")
    ids = tokenizer(["a warm film", "t5 t6"])["input_ids"]
    assert [len(row) for row in ids] == [3, 2]
    assert ids[1] == [5, 6]
    assert ids == tokenizer(["a warm film", "t5 t6"])["input_ids"]
    assert tokenizer(tokenizer.decode(ids[0]))["input_ids"] == ids[0]
    assert (
        tokenizer("a b c", truncation=True, max_length=2)["input_ids"]
        == ids[0][:0] + (tokenizer("a b")["input_ids"])
    )
    assert tokenizer.eos_token_id is None


def test_a_random_bridge_has_the_right_size() -> None:
    sender = random_weights.identity(LLAMA, "bfloat16", "cpu")
    folder = random_weights.bridge_folder(MISTRAL, 8, 16)
    identity, module = random_weights.random_bridge(folder, sender, CPU)
    assert module.count_parameters() == 10_514_944
    assert (identity.soft_tokens, identity.width, identity.layer) == (8, 4096, 16)
    assert identity.sender == sender.fingerprint
    assert identity.receiver == random_weights.fingerprint(MISTRAL)
    assert identity.prompts == ("any",)
    states = torch.randn(2, 5, 4096)
    soft = module(states, torch.ones(2, 5, dtype=torch.bool))
    low, high = identity.rms_range
    rms = soft.pow(2).mean(dim=-1).sqrt()
    assert ((rms > low) & (rms < high)).all()


def test_a_layer_that_the_sender_lacks_is_refused() -> None:
    sender = replace(random_weights.identity("random/tiny-llama", "float32", "cpu"))
    with pytest.raises(BridgeError, match="layer 9"):
        random_weights.random_bridge(
            random_weights.bridge_folder("random/tiny-mistral", 8, 9), sender, CPU
        )


def test_an_unknown_shape_names_those_that_are_known() -> None:
    with pytest.raises(ModelError, match="shape is unknown") as error:
        random_weights.build("gpt2", torch.float32, CPU)
    assert LLAMA in str(error.value)


def test_the_identity_says_that_the_weights_are_random() -> None:
    assert "random weights" in random_weights.identity(LLAMA, "bfloat16", "cuda:0").name
    assert random_weights.fingerprint(LLAMA) != random_weights.fingerprint(MISTRAL)
