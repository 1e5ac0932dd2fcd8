"""The state of a training on disk, so that it can resume after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentwire.training.tensor_file import load_tensors, save_tensors

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
        identity: everything that the training depends on (recipe, models, rows). A file with
            another identity is ignored.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, snapshot: Snapshot) -> None:
        """Replaces the file."""
        state = {
            "version": VERSION,
            "identity": self.identity,
            "step": snapshot.step,
            "seconds": snapshot.seconds,
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
            float(state["seconds"]),
            {key: value.to(device) for key, value in tensors.items()},
            list(state["notes"]),
        )

    def remove(self) -> None:
        """Deletes the file; call it when the result is written."""
        self.path.unlink(missing_ok=True)
