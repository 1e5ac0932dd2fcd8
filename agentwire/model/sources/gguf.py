"""Reads GGUF files: metadata in one pass, and tensors dequantized in blocks of rows.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package decodes the
quantized blocks.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentwire.config import open_regular
from agentwire.errors import ModelError

_MAGIC = b"GGUF"
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # struct codes by type
_STRING, _ARRAY = 8, 9
_BLOCK_VALUES = 1 << 22  # values dequantized at a time (16 MiB of float32)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is: shape (rows first), GGML type, and byte offset in the tensor data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """A memory-mapped GGUF file (version 2 or 3, little-endian); raises ModelError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: list[TensorInfo] = []
        try:
            with open_regular(path) as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._read_head()
        except (OSError, ValueError, struct.error, UnicodeDecodeError, KeyError) as error:
            raise ModelError(
                f"{path} is not a readable GGUF file: {error}.",
                hint="Remove the model from the cache and run `agentwire models pull` again.",
            ) from error

    def _read_head(self) -> None:
        self._at = 0
        if self._data[:4] != _MAGIC:
            raise ValueError("wrong magic")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        tensors, keys = self._scalar("Q"), self._scalar("Q")
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        for _ in range(tensors):
            name = self._string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
            self.tensors.append(TensorInfo(name, shape[::-1], self._scalar("I"), self._scalar("Q")))
        alignment = int(self.metadata.get("general.alignment", 32))
        self._start = -(-self._at // alignment) * alignment

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        size = self._scalar("Q")
        text = self._data[self._at : self._at + size]
        if len(text) != size:
            raise ValueError("truncated")
        self._at += size
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            code = f"<{count}{_SCALARS[item]}"
            values = list(struct.unpack_from(code, self._data, self._at))
            self._at += struct.calcsize(code)
            return values
        return [self._value(item) for _ in range(count)]

    def blocks(self, tensor: TensorInfo) -> Iterator[npt.NDArray[np.float32]]:
        """The tensor as float32 in blocks of whole rows; a vector is one row."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(tensor.kind)
        values, size = GGML_QUANT_SIZES[kind]
        columns = tensor.shape[-1]
        rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        row_bytes = columns // values * size
        start = self._start + tensor.offset
        if start + rows * row_bytes > len(self._data):
            raise ModelError(
                f"{self.path} is truncated.", hint="Run `agentwire models pull` again."
            )
        raw = np.frombuffer(self._data, np.uint8, rows * row_bytes, start).reshape(rows, row_bytes)
        step = max(1, _BLOCK_VALUES // columns)
        for first in range(0, rows, step):
            block = raw[first : first + step]
            if kind == GGMLQuantizationType.F32:
                yield block.view(np.float32)
            else:
                yield np.asarray(dequantize(block, kind), dtype=np.float32)
