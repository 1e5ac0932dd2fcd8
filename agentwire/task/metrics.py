"""Statistics of accuracies and latencies: intervals, paired tests, percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


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
