"""Scores of a result: exact bytes, and no value that is no log-probability."""

from __future__ import annotations

import numpy as np
import pytest

from agentwire.errors import RemoteProtocolError
from agentwire.runtime.pending import from_scores


def test_scores_are_rows_of_little_endian_float32() -> None:
    array = np.log(np.array([[0.25, 0.75], [1.0, 1e-30]], np.float32))
    data = array.astype("<f4").tobytes()
    np.testing.assert_array_equal(array, np.array(from_scores(data, 2, 2), np.float32))


def test_a_score_may_be_minus_infinity_but_not_nan() -> None:
    assert from_scores(np.array([-np.inf, 0], "<f4").tobytes(), 1, 2)[0][0] == -np.inf
    for value in (np.nan, np.inf):
        with pytest.raises(RemoteProtocolError, match="NaN"):
            from_scores(np.array([value, 0], "<f4").tobytes(), 1, 2)


@pytest.mark.parametrize(("n", "labels"), [(1, 2), (2, 0), (0, 0), (-1, -3)])
def test_scores_have_exactly_their_bytes(n: int, labels: int) -> None:
    with pytest.raises(RemoteProtocolError):
        from_scores(bytes(12), n, labels)
