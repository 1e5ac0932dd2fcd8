"""Accuracies of one setting over its seeds, and whether two settings can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from rendering.markdown import Record

DASH = "–"
Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Sample:
    """Accuracies of a setting's runs.

    Attributes:
        values: one a seed; never empty.
        n: rows that each was counted on; 0: unknown.
    """

    values: tuple[float, ...]
    n: int = 0

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def variance(self) -> float:
        """Of the mean: from the rows (binomial), and from the seeds where there are several."""
        rows = self.mean * (1 - self.mean) / self.n if self.n else 0.0
        seeds = len(self.values)
        return rows + (stdev(self.values) ** 2 / seeds if seeds > 1 else 0.0)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {stdev(self.values):.3f} ({len(self.values)} seeds)"


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two means.

    Attributes:
        value: first minus second.
        margin: half of its 95 % interval, as if the two had not seen the same rows: wider than a
            paired one, so what it tells apart is told apart.
    """

    value: float
    margin: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves zero out, else 0."""
        if abs(self.value) <= self.margin:
            return 0
        return 1 if self.value > 0 else -1

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.margin:.3f}"


def sample(runs: Sequence[Record], key: str = "accuracy", n: int = 0) -> Sample | None:
    """The runs' figures of this name; None: no run has it.

    Args:
        n: rows, for runs that do not say theirs.
    """
    known = [run for run in runs if isinstance(run.get(key), int | float)]
    if not known:
        return None
    return Sample(tuple(run[key] for run in known), known[0].get("n", n))


def minus(first: Sample, second: Sample) -> Difference:
    """First minus second."""
    return Difference(first.mean - second.mean, Z95 * sqrt(first.variance + second.variance))


def shown(value: Any) -> str:
    """A sample or a fraction; a dash for None."""
    if value is None:
        return DASH
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
