"""The status file of a run (``agentwire top``): totals only, and always replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agentwire.config import read_regular

STATUS_FILE: Final = "status.json"
BUCKETS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
"""Upper bounds of the latency buckets, in milliseconds; a last bucket is unbounded."""


def quantile(counts: Sequence[int], q: float) -> float:
    """The upper bound, in ms, of the bucket that contains a quantile; 0 for an empty histogram."""
    rank, seen = q * sum(counts), 0
    for bound, count in zip((*BUCKETS_MS, float("inf")), counts, strict=True):
        seen += count
        if count and seen >= rank:
            return bound
    return 0.0


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Replaces the status file; raises OSError."""
    fresh = folder / f".{STATUS_FILE}.{os.getpid()}"
    fresh.write_text(json.dumps(status) + "\n", encoding="utf-8")
    fresh.replace(folder / STATUS_FILE)


def read_status(folder: Path) -> dict[str, Any] | None:
    """The status of a run; None if there is none."""
    try:
        value = json.loads(read_regular(folder / STATUS_FILE))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
