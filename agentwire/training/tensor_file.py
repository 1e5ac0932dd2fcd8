"""Tensors with JSON notes in one safetensors file, which is replaced atomically.

The notes are in the file's header, so tensors and notes are always of the same moment. A process
that dies while it writes leaves the old file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentwire.config import ensure_writable


def save_tensors(file: Path, tensors: dict[str, Tensor], notes: Any) -> None:
    """
    Raises:
        CacheError: the folder cannot be written.
    """
    ensure_writable(file.parent)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(stored, partial, metadata={"notes": json.dumps(notes)})
    os.replace(partial, file)


def load_tensors(file: Path) -> tuple[dict[str, Tensor], Any] | None:
    """Tensors on the CPU, and notes; None if the file is missing or corrupt."""
    try:
        with safe_open(file, framework="pt") as stored:
            notes = json.loads((stored.metadata() or {})["notes"])
            return {key: stored.get_tensor(key) for key in stored.keys()}, notes  # noqa: SIM118
    except (FileNotFoundError, OSError, SafetensorError, ValueError, KeyError):
        return None
