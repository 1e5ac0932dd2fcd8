"""Accuracies of one setting over its seeds, and the difference of two settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from rendering.markdown import DASH, Record

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
    def margin(self) -> float:
        """Half of the 95 % interval of the mean."""
        return Z95 * sqrt(self.variance)

    @property
    def variance(self) -> float:
        """Of the mean: binomial over rows, plus the spread of the seeds where there are several."""
        rows = self.mean * (1 - self.mean) / self.n if self.n else 0.0
        seeds = len(self.values)
        return rows + (stdev(self.values) ** 2 / seeds if seeds > 1 else 0.0)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {stdev(self.values):.3f}"


def sample(runs: Sequence[Record], key: str = "accuracy", n: int = 0) -> Sample | None:
    """The figures with this key; None if no run has it. ``n``: rows, if the runs do not say."""
    known = [run for run in runs if isinstance(run.get(key), int | float)]
    if not known:
        return None
    return Sample(tuple(run[key] for run in known), known[0].get("n", n))


def difference(first: Sample, second: Sample) -> str:
    """First minus second with half of its 95 % interval, as if the samples were independent.

    Both saw the same rows, so the true interval is narrower.
    """
    margin = Z95 * sqrt(first.variance + second.variance)
    return f"{first.mean - second.mean:+.3f} ± {margin:.3f}"


def shown(value: Sample | None) -> str:
    return DASH if value is None else str(value)


def grouped(runs: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Runs by a key, in the order of its first appearance."""
    found: dict[str, list[Record]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found
