"""The choice of a captured shape for a batch."""

from __future__ import annotations

import numpy as np
import pytest

from agentwire.model.static.buckets import Buckets, fill
from agentwire.spec.agent import GraphSpec

BUCKETS = Buckets((1, 4, 16), (16, 48, 512), 2048)


@pytest.mark.parametrize(
    ("rows", "tokens", "shape"),
    [
        (1, 1, (1, 16)),
        (1, 16, (1, 16)),
        (1, 17, (1, 48)),
        (2, 48, (4, 48)),
        (4, 512, (4, 512)),
        (5, 48, (16, 48)),
        (5, 49, None),  # 16 * 512 tokens are too many
        (17, 1, None),
        (1, 513, None),
    ],
)
def test_a_batch_gets_the_smallest_shape_that_holds_it(
    rows: int, tokens: int, shape: tuple[int, int] | None
) -> None:
    assert BUCKETS.choose(rows, tokens) == shape
    assert shape is None or shape in set(BUCKETS.shapes())


def test_shapes_come_largest_first_so_that_the_others_fit_their_memory() -> None:
    shapes = list(BUCKETS.shapes())
    sizes = [n * t for n, t in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert (16, 512) not in shapes
    assert len(shapes) == 8


def test_no_bucket_is_larger_than_the_agents_largest_batch() -> None:
    spec = GraphSpec(texts=(48, 16), batches=(1, 8, 64))
    buckets = Buckets.of(spec, 24)
    assert buckets.rows == (1, 8, 24)
    assert buckets.tokens == (16, 48)
    assert buckets.choose_rows(9) == 24
    assert buckets.choose_rows(25) is None


def test_rows_are_padded_on_the_right_with_their_length() -> None:
    packed = np.full((3, 5), 9, dtype=np.int64)
    fill(packed, [[5, 6, 7], [8]])
    assert packed.tolist() == [[5, 6, 7, 0, 3], [8, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
