"""What an agent counted in its life: a small JSON file beside its log, written when it ends.

An agent that is killed leaves none; the counts of a later incarnation replace an earlier one's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

BatchSizes: TypeAlias = Mapping[str, Mapping[int, int]]
"""kind of work -> rows of a batch -> how many batches."""


def write_counts(path: Path, batches: BatchSizes) -> None:
    """Writes the file; a folder that cannot be written costs the counts and nothing else."""
    try:
        path.write_text(json.dumps({"batches": batches}) + "\n", encoding="utf-8")
    except OSError:
        return


def read_counts(folder: Path) -> dict[str, dict[str, dict[int, int]]]:
    """Batch sizes of every agent that left its counts in a folder of logs, by agent."""
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
