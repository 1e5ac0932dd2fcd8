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
class KnownModel:
    """A model that is known by name.

    Attributes:
        config: contents of config.json.
        parts: of the GGUF file, in order; none: the model comes from the hub.
        file: published name of the GGUF file.
        sha256: of the GGUF file; the model's fingerprint.
        layout: how the GGUF file names and orders tensors.
    """

    name: str
    licence: str
    parameters: int
    config: Mapping[str, Any] = field(repr=False)
    parts: tuple[ArchivePart, ...] = ()
    file: str = ""
    sha256: str = ""
    layout: Literal["llama", "gemma3"] = "llama"

    @property
    def width(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def download_bytes(self) -> int:
        return sum(part.archive.size for part in self.parts)

    @property
    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json."""
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {"_from_model_config": True, **{key: self.config[key] for key in keys}}


def read_data(name: str) -> dict[str, Any]:
    """Contents of ``models/<name>.json``."""
    file = files("agentwire.model.sources") / "models" / f"{name}.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def _known(name: str) -> KnownModel:
    data = read_data(name)
    parts = data.pop("parts", ())
    return KnownModel(
        **data, parts=tuple(ArchivePart(Archive(**p["archive"]), p["member"]) for p in parts)
    )


SMOLLM2 = _known("smollm2-135m-instruct")
GEMMA3 = _known("gemma-3-270m")
MODELS: Mapping[str, KnownModel] = {model.name: model for model in (SMOLLM2, GEMMA3)}
"""Models of the package registry, by name."""
_HUB = (_known("llama-3.1-8b-instruct"), _known("mistral-7b-instruct-v0.3"))
HUB_MODELS: Mapping[str, KnownModel] = {model.name: model for model in _HUB}
"""Hub models with a known shape; scenarios may name any other as well."""
