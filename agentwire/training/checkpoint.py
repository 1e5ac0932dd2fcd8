"""The state of a training on disk, so that it can resume after a crash.

Tensors and JSON notes are in one safetensors file, which is replaced atomically. The notes are in
its header, so both are always of the same step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentwire.config import Config, ensure_writable
from agentwire.errors import CacheError

VERSION = 3


def save_tensors(file: Path, tensors: dict[str, Tensor], notes: Any) -> None:
    """Replaces the file atomically; raises CacheError if its folder cannot be written."""
    ensure_writable(file.parent)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(notes)
    try:
        save_file(stored, partial, metadata={"notes": text, "sha256": _sha256(stored, text)})
        os.replace(partial, file)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise CacheError(f"{file} cannot be written: {error}.", hint="Free some space.") from None


def load_tensors(file: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Tensors on the CPU, and notes; None if the file is missing or corrupt."""
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if metadata["sha256"] != _sha256(tensors, metadata["notes"]):
            return None
        return tensors, json.loads(metadata["notes"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def _sha256(tensors: dict[str, Tensor], notes: str) -> str:
    digest = hashlib.sha256(notes.encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of trainings side by side after ``step`` steps."""

    step: int
    tensors: dict[str, Tensor]  # weights, averages, optimiser states and best weights
    notes: list[dict[str, Any]]  # history and counters of each module, as JSON


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one training."""

    path: Path
    identity: str  # of everything that the training depends on; another file is ignored

    @classmethod
    def of(cls, config: Config, bridge: str, identity: Sequence[object]) -> Checkpoint:
        """The file in the user cache; its name depends on the identity."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return cls(config.home / "training" / f"{bridge}-{digest[:16]}.safetensors", digest)

    def save(self, snapshot: Snapshot) -> None:
        state = {
            "version": VERSION,
            "identity": self.identity,
            "step": snapshot.step,
            "notes": snapshot.notes,
        }
        random = {"rng/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["rng/cuda"] = torch.cuda.get_rng_state()
        save_tensors(self.path, snapshot.tensors | random, state)

    def load(self, device: torch.device) -> Snapshot | None:
        """The saved state on ``device``, with torch's generators restored; None: nothing saved."""
        found = load_tensors(self.path)
        if found is None:
            return None
        tensors, state = found
        if (state.get("version"), state.get("identity")) != (VERSION, self.identity):
            return None
        torch.set_rng_state(tensors.pop("rng/cpu"))
        cuda = tensors.pop("rng/cuda", None)
        if cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(cuda, device)
        return Snapshot(
            int(state["step"]),
            {key: value.to(device) for key, value in tensors.items()},
            list(state["notes"]),
        )

    def remove(self) -> None:
        """Deletes the file; call it when the result is written."""
        self.path.unlink(missing_ok=True)
