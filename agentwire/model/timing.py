"""Stage times of a batch, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable


def ms_since(start: float) -> float:
    """Milliseconds since ``start``, a value of ``time.perf_counter``."""
    return (time.perf_counter() - start) * 1e3


class Stopwatch:
    """Time of each stage; ``synchronize`` waits for the device that computes it."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.stages: dict[str, float] = {}
        self._synchronize = synchronize
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Ends a stage."""
        self._synchronize()
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + (now - self._last) * 1e3
        self._last = now
