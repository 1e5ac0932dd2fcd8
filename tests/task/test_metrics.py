"""Statistics against published or independently known values."""

from __future__ import annotations

import math

import pytest

from agentwire.task.metrics import (
    bootstrap_interval,
    mcnemar,
    paired_bootstrap,
    percentile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_newcombes_table(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[0] == 0.0
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="not between"):
        wilson_interval(correct, n)


def pairs(b: int, c: int, both: int = 3) -> tuple[list[bool], list[bool]]:
    first = [True] * b + [False] * c + [True] * both
    second = [False] * b + [True] * c + [True] * both
    return first, second


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (10, 0, 2 / 1024),
        (1, 9, 22 / 1024),  # 2 * (1 + 10) / 2^10
        (2, 8, 112 / 1024),  # 2 * (1 + 10 + 45) / 2^10
    ],
)
def test_mcnemar_is_the_exact_binomial_tail(b: int, c: int, p: float) -> None:
    result = mcnemar(*pairs(b, c))
    assert (result.only_first, result.only_second) == (b, c)
    assert result.p_value == pytest.approx(p, rel=1e-12)


def test_mcnemar_is_symmetric_and_copes_with_whole_test_sets() -> None:
    forth, back = mcnemar(*pairs(2100, 1900)), mcnemar(*pairs(1900, 2100))
    assert forth.p_value == back.p_value
    # Normal approximation with continuity correction: z = (200 - 1) / sqrt(4000).
    normal = math.erfc(199 / math.sqrt(4000) / math.sqrt(2))
    assert forth.p_value == pytest.approx(normal, rel=0.01)


def test_mcnemar_needs_the_same_rows() -> None:
    with pytest.raises(ValueError, match="not the same rows"):
        mcnemar([True], [True, False])


def test_the_bootstrap_interval_is_that_of_the_normal_approximation() -> None:
    values = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([]) == (0.0, 0.0)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)


def test_the_paired_bootstrap_uses_the_pairs() -> None:
    first = [i / 200 for i in range(200)]
    better = paired_bootstrap([x + 0.1 for x in first], first)
    assert better.difference == pytest.approx(0.1)
    assert better.interval95 == pytest.approx((0.1, 0.1))
    assert better.p_value == pytest.approx(1e-4)
    mixed = paired_bootstrap([x + (-1) ** i for i, x in enumerate(first)], first)
    assert mixed.interval95[0] < 0 < mixed.interval95[1]
    assert mixed.p_value > 0.5
    assert paired_bootstrap(first, first).p_value == 1
    for one, other in (([1.0], []), ([], [])):
        with pytest.raises(ValueError, match="not the same rows"):
            paired_bootstrap(one, other)


def test_percentiles_are_linear_between_order_statistics() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 50) == 2.5
    assert percentile(values, 95) == pytest.approx(3.85)
    assert percentile(values, 0) == 1.0
    assert percentile(values, 100) == 4.0
    assert math.isnan(percentile([], 50))
    with pytest.raises(ValueError, match="not between"):
        percentile(values, 101)
