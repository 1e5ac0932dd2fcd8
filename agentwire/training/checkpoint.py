"""What a training needs to go on after a crash: one safetensors file, replaced in one step.

The numbers that are not tensors stand as JSON in the file's own header, so that both are always of
the same moment; a process that is killed while it writes leaves the earlier file whole.
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

VERSION = 2


@dataclass(frozen=True, slots=True)
class Progressed:
    """A training so far.

    Attributes:
        step: steps that are done.
        seconds: time that they took.
        tensors: weights, averages, optimiser states and best weights of each member.
        notes: history and counters of each member, as JSON holds them.
    """

    step: int
    seconds: float
    tensors: dict[str, Tensor]
    notes: list[dict[str, Any]]


class Checkpoint:
    """The file of one training.

    Args:
        path: the file.
        identity: everything that the training depends on (recipe, models, rows); a file of another
            training is not taken up.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, now: Progressed) -> None:
        """Writes the file beside the old one, and then over it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "version": VERSION,
            "identity": self.identity,
            "step": now.step,
            "seconds": now.seconds,
            "notes": now.notes,
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in now.tensors.items()}
        tensors["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        save_file(tensors, partial, metadata={"state": json.dumps(state)})
        os.replace(partial, self.path)

    def load(self, device: torch.device) -> Progressed | None:
        """The training so far, on ``device``, random generators set; None: none, or another's."""
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, OSError, ValueError, KeyError):
            return None  # a broken file costs time, not the result: the training starts anew
        if (state.get("version"), state.get("identity")) != (VERSION, self.identity):
            return None
        torch.set_rng_state(tensors.pop("rng/cpu"))
        cuda = tensors.pop("rng/cuda", None)
        if cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(cuda, device)
        return Progressed(
            int(state["step"]),
            float(state["seconds"]),
            {key: value.to(device) for key, value in tensors.items()},
            list(state["notes"]),
        )

    def remove(self) -> None:
        """The training is over."""
        self.path.unlink(missing_ok=True)
