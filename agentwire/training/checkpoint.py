"""The state of a training on disk, so that it can resume after a crash: one safetensors file.

Numbers that are not tensors are JSON in the file's header, so that both are always of the same
step. The file is replaced atomically: a process that dies while it writes leaves the old one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = 3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of trainings side by side.

    Attributes:
        step: finished steps.
        seconds: time that they took.
        tensors: weights, averages, optimiser states and best weights of each module.
        notes: history and counters of each module, as JSON.
    """

    step: int
    seconds: float
    tensors: dict[str, Tensor]
    notes: list[dict[str, Any]]


class Checkpoint:
    """The file of one training.

    Args:
        path: the file.
        identity: everything that the training depends on (recipe, models, rows). A file with
            another identity is ignored.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, snapshot: Snapshot) -> None:
        """Replaces the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "version": VERSION,
            "identity": self.identity,
            "step": snapshot.step,
            "seconds": snapshot.seconds,
            "notes": snapshot.notes,
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        save_file(tensors, partial, metadata={"state": json.dumps(state)})
        os.replace(partial, self.path)

    def load(self, device: torch.device) -> Snapshot | None:
        """The saved state on ``device``, with torch's generators restored; None: nothing saved."""
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, OSError, ValueError, KeyError):
            return None  # a corrupt file costs time only: the training starts again
        if (state.get("version"), state.get("identity")) != (VERSION, self.identity):
            return None
        torch.set_rng_state(tensors.pop("rng/cpu"))
        cuda = tensors.pop("rng/cuda", None)
        if cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(cuda, device)
        return Snapshot(
            int(state["step"]),
            float(state["seconds"]),
            {key: value.to(device) for key, value in tensors.items()},
            list(state["notes"]),
        )

    def remove(self) -> None:
        """Deletes the file; call it when the result is written."""
        self.path.unlink(missing_ok=True)
