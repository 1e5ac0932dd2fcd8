"""Converts a registry model from GGUF to a Hugging Face folder: safetensors, config, tokenizer.

Run as ``python -m agentwire.model.sources.convert NAME GGUF FOLDER``; prints progress as JSON lines
``{"stage": …, "fraction": …}``. ``from_pretrained(gguf_file=…)`` is not used: it needs 96 s for a
vocabulary of 262,144 tokens on two cores (6 s here), and its result differs between releases. The
result equals what transformers 5.23 makes of these files, tensor by tensor and token by token.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentwire.download import OnProgress
from agentwire.errors import AgentwireError, ModelError
from agentwire.model.sources.gguf import GgufFile, TensorInfo
from agentwire.model.sources.registry import MODELS, KnownModel, read_data
from agentwire.model.sources.tokenizer_json import tokenizer_json

_NAMES = read_data("gguf-names")  # GGUF -> Hugging Face: common ones, and those of a layout
_SKIPPED = {"rope_freqs"}  # computed from the config


def convert(model: KnownModel, gguf: Path, folder: Path, progress: OnProgress) -> None:
    """Writes a Hugging Face folder (which must exist) from a GGUF file; raises ModelError."""
    source = GgufFile(gguf)
    progress("convert", 0.05)
    weights = folder / "model.safetensors"
    write_weights(model, source, weights, lambda f: progress("convert", 0.9 * f))
    _write_json(folder / "config.json", model.config)
    _write_json(folder / "generation_config.json", model.generation_config)
    tokenizer, tokenizer_config = tokenizer_json(model, source.metadata)
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    if template := source.metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    progress("convert", 1.0)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def hf_name(gguf_name: str, layout: str) -> str | None:
    """The Hugging Face name of a GGUF tensor; None if it is not needed. Raises ModelError."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", gguf_name)
    part = match[2] if match else gguf_name
    if part in _SKIPPED:
        return None
    name = {**_NAMES["common"], **_NAMES[layout]}.get(part)
    if match is None or name is None:
        raise ModelError(f"The GGUF tensor {gguf_name!r} is unknown.", hint="Report this as a bug.")
    prefix = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{prefix}{name}.weight"


def write_weights(
    model: KnownModel, source: GgufFile, file: Path, progress: Callable[[float], None]
) -> None:
    """Streams every tensor as bfloat16 into a safetensors file.

    Format: https://github.com/huggingface/safetensors#format.
    """
    named = [(hf_name(tensor.name, model.layout), tensor) for tensor in source.tensors]
    wanted = sorted((name, tensor) for name, tensor in named if name is not None)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in wanted:
        start, end = end, end + 2 * int(np.prod(tensor.shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name, tensor in wanted:
            for block in _values(model, source, tensor):
                stream.write(bfloat16(block).tobytes())
            progress(header[name]["data_offsets"][1] / end)


def _values(
    model: KnownModel, source: GgufFile, tensor: TensorInfo
) -> Iterator[npt.NDArray[np.float32]]:
    blocks = source.blocks(tensor)
    if model.layout == "gemma3" and tensor.name.endswith("norm.weight"):
        return (block - np.float32(1) for block in blocks)  # Gemma's RMSNorm scales by 1 + weight
    if model.layout == "llama" and re.search(r"\.attn_[qk]\.", tensor.name):
        heads = "num_attention_heads" if ".attn_q." in tensor.name else "num_key_value_heads"
        return iter([_unpermuted(np.concatenate(list(blocks)), model.config[heads])])
    return blocks


def _unpermuted(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undoes GGUF's interleaving of the two halves of each head's rotary dimensions."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, rows // heads // 2, 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite float32 as bfloat16 bits, rounded to nearest, ties to even, as torch does."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    return rounded.astype("<u2")


def main(arguments: list[str]) -> int:
    """Entry point of the child process: exit code 0, or 1 with the reason on stderr."""
    name, gguf, folder = arguments

    def progress(stage: str, fraction: float) -> None:
        print(json.dumps({"stage": stage, "fraction": round(fraction, 4)}), flush=True)

    try:
        convert(MODELS[name], Path(gguf), Path(folder), progress)
    except (AgentwireError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
