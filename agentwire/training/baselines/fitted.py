"""Fitted baselines in the user cache: safetensors, named by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentwire.config import ensure_writable
from agentwire.training.baselines.setting import Setting

VERSION = 1
"""Of what the baselines do: a new one makes the cache forget the old."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a baseline learned.

    Attributes:
        tensors: its weights.
        notes: settings that were chosen, and the accuracy on held-out rows that chose them.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


def cache_file(setting: Setting, method: str) -> Path:
    """Where a fitted baseline of this scenario lies."""
    identity = {"version": VERSION, "method": method, **setting.identity()}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return setting.config.home / "baselines" / f"{method}-{digest[:16]}.safetensors"


def load_fitted(file: Path) -> Fitted | None:
    """A baseline from the cache; None: not there, or damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            notes = json.loads((stored.metadata() or {})["notes"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (FileNotFoundError, OSError, SafetensorError, ValueError, KeyError):
        return None
    return Fitted(tensors, notes)


def save_fitted(file: Path, fitted: Fitted) -> None:
    """Puts a baseline into the cache in one step.

    Raises:
        CacheError: the cache cannot be written.
    """
    ensure_writable(file.parent)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    tensors = {key: value.detach().cpu().contiguous() for key, value in fitted.tensors.items()}
    save_file(tensors, partial, metadata={"notes": json.dumps(fitted.notes)})
    os.replace(partial, file)
