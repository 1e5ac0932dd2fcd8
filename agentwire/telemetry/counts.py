"""Counts of an agent's lifetime, in a JSON file beside its log. A killed agent leaves none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

BatchSizes: TypeAlias = Mapping[str, Mapping[int, int]]
"""Kind of work -> rows of a batch -> number of batches."""


def write_counts(path: Path, batches: BatchSizes) -> None:
    """Writes the file. An unwritable folder is ignored: a run does not depend on it."""
    try:
        path.write_text(json.dumps({"batches": batches}) + "\n", encoding="utf-8")
    except OSError:
        return


def read_counts(folder: Path) -> dict[str, dict[str, dict[int, int]]]:
    """Batch sizes by agent, from every readable counts file in a folder of logs."""
    found: dict[str, dict[str, dict[int, int]]] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            batches = json.loads(file.read_text(encoding="utf-8"))["batches"]
            found[file.stem] = {
                kind: {int(rows): int(count) for rows, count in sizes.items()}
                for kind, sizes in batches.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found
