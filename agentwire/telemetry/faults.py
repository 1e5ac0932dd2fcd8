"""Counts errors of things that no request depends on, such as the journal or a user's callback."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class Faults:
    """Contained errors by kind: the first of each kind is logged, all are counted (``counts``)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._last: dict[str, str] = {}

    def record(self, kind: str, error: BaseException) -> None:
        self.counts[kind] += 1
        self._last[kind] = text = describe(error)
        if self.counts[kind] == 1:
            # The system's errors explain themselves; any other needs its traceback.
            trace = None if isinstance(error, OSError) else error
            log.error("%s: %s (the run goes on; repeats are counted)", kind, text, exc_info=trace)

    @contextmanager
    def contain(self, kind: str) -> Iterator[None]:
        """Records an exception instead of raising it. Not around an ``await``."""
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            self.record(kind, error)

    def to_json(self) -> dict[str, Any]:
        return {kind: {"count": n, "last": self._last[kind]} for kind, n in self.counts.items()}


def describe(error: BaseException) -> str:
    """The type and message of an exception, in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
