"""Training rows and held-out rows, which are never the rows that a scenario scores."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.spec.scenario import DataChoice, TrainSpec
from agentwire.task.datasets import TRAIN_SPLIT, Dataset, load_rows
from agentwire.task.definitions import load_classification
from agentwire.task.holdout import held_out_split
from agentwire.task.rows import rows_sha256


def training_rows(data: DataChoice, recipe: TrainSpec, config: Config) -> tuple[Dataset, Dataset]:
    """The rows that bridges and baselines train on, and the rows that choose their settings."""
    load_classification(data.dataset)  # questions are trained on by the reader's own stages
    refuse_scored_rows(data)
    split = load_rows(data.dataset, TRAIN_SPLIT, config=config, path=data.path)
    rows, held_out = held_out_split(split, min(recipe.held_out, len(split) // 8), recipe.seed)
    if recipe.max_rows and recipe.max_rows < len(rows):
        rows = sample(rows, recipe.max_rows, recipe.seed)
    return rows, held_out


def sample(rows: Dataset, n: int, seed: int) -> Dataset:
    """At most n random rows in the source's order. Files are often sorted by class."""
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(n, len(rows))))
    kept = tuple(rows.rows[i] for i in chosen)
    marks = {
        "sample": f"{len(kept)} of {len(rows)} (seed={seed})",
        "rows_sha256": rows_sha256(kept),
    }
    return replace(rows, rows=kept, provenance={**rows.provenance, **marks})


def refuse_scored_rows(data: DataChoice) -> None:
    """Raises DataError if the training split is scored, or one file serves all splits."""
    if data.path is not None and Path(data.path).expanduser().is_file():
        raise DataError(
            f"{data.path} is one file, so training would read the rows that are scored.",
            hint=f"Set `path` to a folder with {TRAIN_SPLIT}.jsonl and {data.split}.jsonl.",
        )
    if data.split == TRAIN_SPLIT:
        raise DataError(
            f"the scenario scores the split {data.split!r} of {data.dataset}; training reads it.",
            hint="Set `task.split` to another split, e.g. `test`.",
        )
