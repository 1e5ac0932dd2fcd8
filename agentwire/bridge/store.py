"""Bridges on disk: ``<folder>/card.yaml`` and ``<folder>/weights.safetensors``.

The safetensors format holds no code. The header is checked against the card's shape before any
weight is read, so a hostile file can neither run code nor allocate more memory than its card says.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from agentwire.bridge.architectures import ARCHITECTURES
from agentwire.bridge.card import WEIGHTS_FILE, BridgeCard, read_card, write_card
from agentwire.bridge.module import BridgeModule
from agentwire.config import open_regular
from agentwire.errors import BridgeError

MAX_WEIGHTS_BYTES = 4 * 1024**3
DTYPES = {"F16", "BF16", "F32"}
RESTORE = "Restore the folder, or train it again with `agentwire train`."


@dataclass(frozen=True, slots=True)
class LoadedBridge:
    """A verified bridge: its card and its module (fp32, eval mode, on the CPU)."""

    card: BridgeCard
    module: BridgeModule


def build(card: BridgeCard) -> BridgeModule:
    """An untrained module of the card's architecture and shape."""
    return ARCHITECTURES.get(card.architecture)(card.shape)


def weights_sha256(folder: Path) -> str:
    """Hex sha256 of the weights file, which is the bridge's fingerprint."""
    try:
        with open_regular(folder / WEIGHTS_FILE) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BridgeError(f"{folder} holds no {WEIGHTS_FILE}.", hint=RESTORE) from None
    except OSError as error:
        raise BridgeError(
            f"{folder / WEIGHTS_FILE} cannot be read: {error.strerror}.", hint=RESTORE
        ) from error


def verify(folder: Path) -> BridgeCard:
    """Checks card, checksum and tensor shapes without allocating the module. Raises a BridgeError
    if something is missing, corrupt, or does not match the card."""
    card = read_card(folder)
    path = folder / WEIGHTS_FILE
    if path.is_file() and path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise BridgeError(f"{path} exceeds the size limit of a bridge.", hint=RESTORE)
    if weights_sha256(folder) != card.weights_sha256:
        raise BridgeError(
            f"{path} does not match the checksum in its card: it is corrupt or was replaced.",
            hint=RESTORE,
        )
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in build(card).state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            found = {key: tuple(part.get_shape()) for key, part in parts.items()}
            dtypes = {part.get_dtype() for part in parts.values()}
    except (SafetensorError, OSError, ValueError) as error:
        raise BridgeError(
            f"{path} is not a valid safetensors file: {error}.", hint=RESTORE
        ) from error
    if found != expected:
        wrong = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
        raise BridgeError(
            f"{path} does not have the tensors that its card describes (first: {wrong[0]}).",
            hint=RESTORE,
        )
    if not dtypes <= DTYPES:
        raise BridgeError(
            f"{path} holds {sorted(dtypes - DTYPES)[0]} where a bridge has fp16, bf16 or fp32.",
            hint=RESTORE,
        )
    return card


def load(folder: Path) -> LoadedBridge:
    """Verifies a bridge and builds its module. Raises a BridgeError as ``verify``, or if a weight
    is not finite or a statistic is not positive."""
    card = verify(folder)
    module = build(card)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise BridgeError(f"{folder}: the tensor {key} is not finite.", hint=RESTORE)
        if key in module.positive and not (value > 0).all():
            raise BridgeError(f"{folder}: the tensor {key} is not positive.", hint=RESTORE)
    module.load_state_dict(state)
    module.requires_grad_(False)
    return LoadedBridge(card, module.eval())


def save(folder: Path, card: BridgeCard, module: BridgeModule) -> BridgeCard:
    """Writes the weights in fp16, then the card with their checksum.

    The statistics stay fp32: a feature's standard deviation can exceed the range of fp16.

    Returns:
        The card as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    statistics = {name for name, _ in module.named_buffers()}
    state = {
        key: (value.float() if key in statistics else value.half()).cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    partial = folder / (WEIGHTS_FILE + ".part")
    try:
        save_file(state, partial, metadata={"format": "pt"})
        os.replace(partial, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise BridgeError(
            f"{folder} cannot be written: {error}.", hint="Free some space."
        ) from None
    card = card.model_copy(update={"weights_sha256": weights_sha256(folder)})
    write_card(folder, card)
    return card
