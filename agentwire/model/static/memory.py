"""Estimates an agent's GPU memory before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentwire.model.sources.random_weights import SHAPES
from agentwire.model.static.buckets import Buckets
from agentwire.spec.agent import AgentSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
COPIES = 2  # graphs keep one set of intermediate tensors, and the warm-up leaves another


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes for weights and intermediate tensors, and how many shapes are captured for encoding."""

    weights: int
    graphs: int
    shapes: int


def estimate(spec: AgentSpec) -> Estimate | None:
    """Memory of this agent on a GPU; None if its model's sizes are unknown."""
    config = _config(spec)
    if config is None:
        return None
    size = BYTES[spec.dtype]
    d, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or d // heads
    attention = d * head * (2 * heads + 2 * groups)
    tables = 1 if config.get("tie_word_embeddings") else 2
    layer = attention + 3 * d * inner
    weights = config["num_hidden_layers"] * layer + tables * config["vocab_size"] * d
    if not spec.graphs.enabled:
        return Estimate(weights * size, 0, 0)
    shapes = list(Buckets.of(spec.graphs, spec.max_batch).shapes())
    most = max((n * t for n, t in shapes), default=0)
    # Residual stream, norm and sum; queries, keys and values twice; gate, up and their product.
    token = 4 * d + 2 * head * (heads + 2 * groups) + 3 * inner
    return Estimate(weights * size, COPIES * most * token * size, len(shapes))


def _config(spec: AgentSpec) -> Mapping[str, Any] | None:
    if spec.folder is None:
        return SHAPES.get(spec.model)
    try:
        found = json.loads((Path(spec.folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    return found if isinstance(found, dict) and all(key in found for key in wanted) else None
