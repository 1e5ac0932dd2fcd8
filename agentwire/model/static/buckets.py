"""Chooses the static shape that a batch runs in. Pure.

A batch of n rows with at most T tokens runs in the smallest captured (rows, tokens) that holds
both. If there is none, it runs without a graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentwire.spec.agent import GraphSpec


@dataclass(frozen=True, slots=True)
class Buckets:
    """Batch sizes and row lengths that are captured, rising."""

    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    max_tokens: int  # rows * tokens of the largest shape

    @classmethod
    def of(cls, spec: GraphSpec, max_batch: int) -> Buckets:
        """An agent's buckets; none is larger than its largest batch."""
        rows = {n for n in spec.batches if n < max_batch} | {max_batch}
        return cls(tuple(sorted(rows)), tuple(sorted(set(spec.texts))), spec.max_tokens)

    def choose(self, rows: int, tokens: int) -> tuple[int, int] | None:
        """The captured (rows, tokens) for such a batch, or None."""
        n, t = _smallest(self.rows, rows), _smallest(self.tokens, tokens)
        return None if n is None or t is None or n * t > self.max_tokens else (n, t)

    def choose_rows(self, rows: int) -> int | None:
        """The captured batch size for rows of a fixed length."""
        return _smallest(self.rows, rows)

    def shapes(self) -> Iterator[tuple[int, int]]:
        """Every captured (rows, tokens), the largest first, so that the others fit its memory."""
        pairs = ((n, t) for n in self.rows for t in self.tokens if n * t <= self.max_tokens)
        return iter(sorted(pairs, key=lambda pair: (-pair[0] * pair[1], -pair[0])))


def _smallest(sizes: Sequence[int], wanted: int) -> int | None:
    at = bisect_left(sizes, wanted)
    return sizes[at] if at < len(sizes) else None


def fill(packed: npt.NDArray[np.int64], rows: Sequence[Sequence[int]]) -> None:
    """Writes ragged ids into [n, T + 1]: zeros behind a row, then its length (1: unused)."""
    packed[:] = 0
    packed[:, -1] = 1
    for line, row in zip(packed, rows, strict=False):
        line[: len(row)] = row
        line[-1] = len(row)
