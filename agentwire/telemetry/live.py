"""What a runtime has done so far, for whoever looks while it runs: a scrape, or ``agentwire top``.

Totals only, so that whoever reads twice can tell rates. The status file in a run's folder is
replaced as a whole, so a reader never sees half of it.
"""

from __future__ import annotations

import bisect
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

STATUS_FILE: Final = "status.json"
BUCKETS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
"""Upper bounds of the latency buckets, in milliseconds."""


class Latencies:
    """A histogram of milliseconds.

    Attributes:
        counts: observations by bucket; the last one is for those above every bound.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_MS) + 1)
        self.total_ms = 0.0

    def add(self, ms: float, times: int = 1) -> None:
        """Counts a value, ``times`` over."""
        self.counts[bisect.bisect_left(BUCKETS_MS, ms)] += times
        self.total_ms += ms * times

    def to_json(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "total_ms": round(self.total_ms, 3)}


def quantile(counts: list[int], q: float) -> float:
    """The upper bound, in ms, of the bucket in which this quantile lies; 0 where none counted."""
    rank, seen = q * sum(counts), 0
    for bound, count in zip((*BUCKETS_MS, float("inf")), counts, strict=True):
        seen += count
        if count and seen >= rank:
            return bound
    return 0.0


class LiveStats:
    """Totals of one runtime. Belongs to the event loop's thread.

    Attributes:
        outcomes: requests that ended, by (wire, outcome): ``answered`` or an error's code.
        fallbacks: answers that went as text though soft tokens were asked for, by (wire, reason).
        restarts: incarnations of each agent after its first.
        stages: latencies of each stage, and of ``all`` together.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.restarts: Counter[str] = Counter()
        self.stages: dict[str, Latencies] = {}

    def answered(
        self, wire: str, reason: str, stages: Mapping[str, float], latency_ms: float
    ) -> None:
        """One request has its answer."""
        self.outcomes[wire, "answered"] += 1
        if reason:
            self.fallbacks[wire, reason] += 1
        for stage, ms in stages.items():
            self._of(stage).add(ms)
        self._of("all").add(latency_ms)

    def _of(self, stage: str) -> Latencies:
        found = self.stages.get(stage)
        if found is None:
            found = self.stages[stage] = Latencies()
        return found

    def failed(self, wire: str, code: str) -> None:
        """One request has ended without an answer."""
        self.outcomes[wire, code] += 1

    def to_json(self) -> dict[str, Any]:
        """For the status file, and for a scrape."""
        return {
            "outcomes": [[*key, n] for key, n in sorted(self.outcomes.items())],
            "fallbacks": [[*key, n] for key, n in sorted(self.fallbacks.items())],
            "restarts": dict(self.restarts),
            "stages": {name: hist.to_json() for name, hist in self.stages.items()},
        }


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Replaces the status file; a folder that cannot be written costs the status alone."""
    fresh = folder / f".{STATUS_FILE}.{os.getpid()}"
    try:
        fresh.write_text(json.dumps(status) + "\n", encoding="utf-8")
        fresh.replace(folder / STATUS_FILE)
    except OSError:
        return


def read_status(folder: Path) -> dict[str, Any] | None:
    """The status of a run; None if it has none."""
    try:
        value = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
