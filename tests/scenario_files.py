"""Scenario files, bridge folders and rows that tests write to disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from agentwire.bridge.card import BridgeCard, CardModel, CardTraining, write_card

FAKE = """\
name: fakes
agents:
  ada: {model: model-a, backend: fake}
  bob: {model: model-b, backend: fake}
wires:
  - {from: ada, to: bob}
"""

FAKE_TASK = (
    FAKE
    + """\
task: {dataset: movie_snippets, path: rows.jsonl}
batch_size: 4
"""
)


def write(folder: Path, text: str, name: str = "scenario.yaml") -> Path:
    """Write a scenario file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def write_rows(folder: Path, n: int = 30, name: str = "rows.jsonl") -> Path:
    """Write n rows of the two-class movie task."""
    path = folder / name
    lines = [json.dumps({"text": f"film number {i}", "label": i % 2}) for i in range(n)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_card(**changes: Any) -> BridgeCard:
    """A consistent card between the fake models ``model-a`` and ``model-b``."""
    from agentwire.model.fake import fingerprint

    card = BridgeCard(
        name="test-bridge",
        sender=CardModel(model="model-a", fingerprint=fingerprint("model-a"), width=16, layers=4),
        receiver=CardModel(model="model-b", fingerprint=fingerprint("model-b"), width=16, layers=4),
        layer=2,
        soft_tokens=8,
        hidden=8,
        blocks=1,
        heads=2,
        feed_forward=2,
        parameters=100,
        rms_range=(0.5, 2.0),
        prompts=("any",),
        training=CardTraining(
            dataset="movie_snippets",
            split="train",
            rows=10,
            held_out=16,
            held_out_accuracy=0.75,
            step=1,
            seconds=1.0,
            device="cpu",
            recipe={},
            provenance={},
            versions={},
            date="2026-01-01",
        ),
        weights_sha256="0" * 64,
    )
    return card.model_copy(update=changes)


def write_bridge(
    folder: Path, card: BridgeCard | None = None, weights: bytes | None = None
) -> Path:
    """Write a bridge folder; the card holds the checksum of the weights."""
    folder.mkdir(parents=True)
    path = folder / "weights.safetensors"
    if weights is None:
        save_file({"latents": np.zeros((8, 8), np.float16)}, path)
    else:
        path.write_bytes(weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_card(folder, (card or make_card()).model_copy(update={"weights_sha256": digest}))
    return folder
