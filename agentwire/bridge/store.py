"""Bridges on disk: ``<folder>/card.yaml`` and ``<folder>/weights.safetensors``.

A matrix may be stored as int8: tensor ``NAME`` [..., c], and ``NAME.scale`` [...], one scale a row.

The safetensors format holds no code. The header is checked against the card's shape before any
weight is read, so a hostile file can neither run code nor allocate more memory than its card says.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agentwire.bridge.architectures import ARCHITECTURES
from agentwire.bridge.card import WEIGHTS_FILE, BridgeCard, read_card, write_card
from agentwire.bridge.module import BridgeModule
from agentwire.config import open_regular
from agentwire.errors import BridgeError

MAX_WEIGHTS_BYTES = 4 * 1024**3
DTYPES = {"F16", "BF16", "F32"}
INT8, INT8_MAX = "I8", 127
SCALE = ".scale"
RESTORE = "Restore the folder, or train it again with `agentwire train`."


@dataclass(frozen=True, slots=True)
class LoadedBridge:
    """A verified bridge: its card and its module (fp32, eval mode, on the CPU)."""

    card: BridgeCard
    module: BridgeModule


@dataclass(frozen=True, slots=True)
class LoadedHalf:
    """What one agent needs of a reader bridge: ``reader.SenderHalf`` or ``ReceiverHalf``, or the
    whole ``Reader`` at a sender that makes the soft tokens."""

    card: BridgeCard
    module: nn.Module


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
    except (SafetensorError, OSError, ValueError) as error:
        raise BridgeError(
            f"{path} is not a valid safetensors file: {error}.", hint=RESTORE
        ) from error
    int8 = {key for key, part in parts.items() if part.get_dtype() == INT8 and key in expected}
    for key in int8:
        if len(expected[key]) > 1:
            expected[key + SCALE] = expected[key][:-1]
    if found != expected:
        wrong = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
        raise BridgeError(
            f"{path} does not have the tensors that its card describes (first: {wrong[0]}).",
            hint=RESTORE,
        )
    floats = {part.get_dtype() for key, part in parts.items() if key + SCALE not in parts}
    if not floats <= DTYPES:
        raise BridgeError(
            f"{path} holds {sorted(floats - DTYPES)[0]} where a bridge has fp16, bf16 or fp32.",
            hint=RESTORE,
        )
    return card


def load(folder: Path) -> LoadedBridge:
    """Verifies a bridge and builds its module. Raises a BridgeError as ``verify``, or if a weight
    is not finite or a statistic is not positive."""
    card = verify(folder)
    with torch.device("meta"):
        module = build(card)
    _fill(module, folder, module.positive)
    return LoadedBridge(card, module)


def load_half(folder: Path, half: Literal["sender", "receiver"]) -> LoadedHalf:
    """Like ``load``, but only what one side of a reader bridge computes with."""
    card = verify(folder)
    assert card.reader is not None
    with torch.device("meta"):
        module = build(card)
    if half == "sender" and card.reader.where == "sender":
        _fill(module, folder, module.positive)
        return LoadedHalf(card, module)
    part: nn.Module = getattr(module, half)
    _fill(part, folder, module.positive, half + ".")
    return LoadedHalf(card, part)


def _fill(module: nn.Module, folder: Path, positive: frozenset[str], prefix: str = "") -> None:
    """Loads the tensors whose names begin with ``prefix`` into a module on the meta device."""
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        keys = set(file.keys())
        wanted = {key for key in keys if key.startswith(prefix)}
        wanted -= {key + SCALE for key in keys}
        state = {key: file.get_tensor(key).float() for key in wanted}
        for key in wanted:
            if key + SCALE in keys:
                state[key] *= file.get_tensor(key + SCALE).float()[..., None]
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise BridgeError(f"{folder}: the tensor {key} is not finite.", hint=RESTORE)
        if key in positive and not (value > 0).all():
            raise BridgeError(f"{folder}: the tensor {key} is not positive.", hint=RESTORE)
    module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()}, assign=True)
    module.requires_grad_(False).eval()


def _int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and the fp16 scale of each row (the last axis)."""
    scale = (matrix.abs().amax(-1) / INT8_MAX).half()
    step = scale.float().clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    return (matrix / step).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def save(folder: Path, card: BridgeCard, module: BridgeModule, *, int8: bool = False) -> BridgeCard:
    """Writes the weights in fp16, then the card with their checksum.

    The statistics stay fp32: a feature's standard deviation can exceed the range of fp16. With
    ``int8``, matrices are written as int8 rows with fp16 scales.

    Returns:
        The card as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    statistics = {name for name, _ in module.named_buffers()}
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        value = value.detach().float().cpu()
        if key in statistics:
            state[key] = value.contiguous()
        elif int8 and value.ndim > 1 and value.numel():
            state[key], state[key + SCALE] = _int8_rows(value)
        else:
            state[key] = value.half().contiguous()
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
