"""Statistics of accuracies, F1 and latencies: intervals, paired tests, percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22 (1927): with p = correct / n and z the normal quantile,
    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Returns:
        (low, high), fractions in 0..1; (0, 1) without rows.

    Raises:
        ValueError: not 0 <= correct <= n, or confidence not in (0, 1).
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct={correct} is not between 0 and n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is not between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, zz = correct / n, z * z
    middle = p + zz / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = (middle - half) / (1 + zz / n), (middle + half) / (1 + zz / n)
    # Exact at the ends, where rounding errors would leave 1e-17.
    return (0.0 if correct == 0 else max(low, 0.0)), (1.0 if correct == n else min(high, 1.0))


@dataclass(frozen=True, slots=True)
class McNemar:
    """Result of an exact McNemar test of two methods on the same rows.

    Attributes:
        only_first: rows that only the first got right (b).
        only_second: rows that only the second got right (c).
        p_value: two-sided, exact.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact McNemar test of the answers (right or wrong) of two methods on the same rows.

    Q. McNemar, Psychometrika 12 (1947), in its exact binomial form: under equal accuracies the
    b + c discordant rows are fair coin tosses, so
    p = min(1, 2 * sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c)).

    Raises:
        ValueError: the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rows against {len(second)}: not the same rows")
    b = sum(1 for x, y in zip(first, second, strict=True) if x and not y)
    c = sum(1 for x, y in zip(first, second, strict=True) if y and not x)
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
    return McNemar(b, c, min(1.0, 2 * tail / 2**n))


Vector: TypeAlias = npt.NDArray[np.float64]
RESAMPLES = 10_000


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; (0, 0) without values.

    B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Ann. Statist. 7 (1979): the
    quantiles of the means of ``RESAMPLES`` samples, drawn with replacement.
    """
    means = _resampled_means(values, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail)) if len(values) else (0.0, 0.0)
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedBootstrap:
    """Difference of two methods on the same rows.

    Attributes:
        difference: mean of the first minus mean of the second.
        interval95: percentile bootstrap interval of the difference.
        p_value: two-sided: twice the share of resampled differences on the smaller side of 0, at
            least 1 / ``RESAMPLES``.
    """

    difference: float
    interval95: tuple[float, float]
    p_value: float


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], seed: int = 0
) -> PairedBootstrap:
    """Paired bootstrap of two methods, whose rows are resampled together.

    T. Berg-Kirkpatrick, D. Burkett and D. Klein, "An Empirical Investigation of Statistical
    Significance in NLP", EMNLP 2012.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} rows against {len(second)}: not the same rows")
    differences = np.subtract(first, second)
    means = _resampled_means(differences, seed)
    side = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    low, high = np.quantile(means, (0.025, 0.975))
    p_value = min(1.0, max(2 * side, 1 / RESAMPLES))
    return PairedBootstrap(float(differences.mean()), (float(low), float(high)), p_value)


def _resampled_means(values: Sequence[float] | Vector, seed: int) -> Vector:
    draw, known = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    n = len(known)
    if n == 0:
        return np.zeros(0)
    step = max(1, 4_000_000 // n)  # bounds memory
    parts = [
        known[draw.integers(n, size=(min(step, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(parts)


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0..100), linear between order statistics; NaN of nothing.

    Type 7 of R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical Packages", The American
    Statistician 50 (1996), which is numpy's default.

    Raises:
        ValueError: q is not in 0..100.
    """
    if not 0 <= q <= 100:
        raise ValueError(f"q={q} is not between 0 and 100")
    return float(np.percentile(values, q)) if len(values) else math.nan
