"""From label scores to answers and accuracy: the same for every method.

An answer is the label with the highest log-likelihood among the task's label words at the first
answer position; there is no matching of substrings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agentwire.task.metrics import wilson_interval


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers of one method on one set of rows.

    Attributes:
        correct: rows answered right.
        n: rows asked. A row without an answer counts as wrong.
    """

    correct: int
    n: int

    @property
    def fraction(self) -> float:
        """Accuracy, 0 to 1; 0 where there are no rows."""
        return self.correct / self.n if self.n else 0.0

    @property
    def wilson95(self) -> tuple[float, float]:
        """95 % Wilson interval of ``fraction``."""
        return wilson_interval(self.correct, self.n)


def predictions(scores: npt.ArrayLike) -> list[int]:
    """The best label of each row; of equal scores the first label wins.

    Args:
        scores: [n, L] log-probabilities.

    Raises:
        ValueError: not two dimensions, no labels, or a NaN (which would win silently).
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"scores have shape {values.shape}, not [rows, labels]")
    if np.isnan(values).any():
        raise ValueError("scores hold a NaN")
    return [int(index) for index in values.argmax(axis=1)]


def accuracy(predicted: Sequence[int | None], labels: Sequence[int]) -> Accuracy:
    """How many predictions are right; None (no answer) is wrong.

    Raises:
        ValueError: the two differ in length.
    """
    if len(predicted) != len(labels):
        raise ValueError(f"{len(predicted)} predictions for {len(labels)} rows")
    return Accuracy(sum(p == y for p, y in zip(predicted, labels, strict=True)), len(labels))
