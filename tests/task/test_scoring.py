from __future__ import annotations

import numpy as np
import pytest

from agentwire.task.scoring import accuracy, predictions


def test_the_best_label_wins_and_ties_go_to_the_first() -> None:
    assert predictions(np.log([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2]])) == [1, 0]
    assert predictions(np.zeros((0, 2))) == []
    assert predictions([[-np.inf, -5.0]]) == [1]


@pytest.mark.parametrize("scores", [[0.1, 0.2], np.zeros((2, 0)), [[0.1, float("nan")]]])
def test_scores_that_cannot_be_compared_are_refused(scores: object) -> None:
    with pytest.raises(ValueError, match="scores"):
        predictions(scores)  # type: ignore[arg-type]


def test_accuracy_counts_no_answer_as_wrong() -> None:
    result = accuracy([0, 1, None, 1], [0, 1, 1, 0])
    assert (result.correct, result.n, result.fraction) == (2, 4, 0.5)
    assert result.wilson95[0] < 0.5 < result.wilson95[1]
    assert accuracy([], []).fraction == 0.0
    with pytest.raises(ValueError, match="1 predictions for 2 rows"):
        accuracy([0], [0, 1])
