"""Which passages and questions each step of a reader's training reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from agentwire.spec.scenario import SchemaModel
from agentwire.training.reader.corpus import (
    CLOZE,
    CONTINUATION,
    QUESTION,
    QUESTION_TOKENS,
    Corpus,
)

Weight = Annotated[float, Field(ge=0)]
BUCKETS = (160, 288, 512)
"""Upper limits of a passage's tokens. A step draws from one bucket, so there are few shapes."""


class ReaderStage(SchemaModel):
    """A part of the training.

    Attributes:
        share: of all steps, relative to the other stages.
        continuation, cloze, question: relative weights of the kinds of items. All items of a step
            are of one kind.
        joined: share of the steps with questions in which 2 or 4 passages are read as one text.
    """

    share: Annotated[float, Field(gt=0)] = 1.0
    continuation: Weight = 0.0
    cloze: Weight = 0.0
    question: Weight = 1.0
    joined: Annotated[float, Field(ge=0, le=1)] = 0.0


class StepShape(NamedTuple):
    """What a CUDA graph of one step depends on.

    Attributes:
        kind: of the items.
        size: M.
        longest: the sender's tokens of the longest passage of the bucket.
        joined: passages that are read as one text.
    """

    kind: int
    size: int
    longest: int
    joined: int = 1


class Schedule:
    """The items [steps, items] and shapes of all steps, drawn from a seed.

    Args:
        items: of one step: two about each passage, or one continuation of each.
        sizes: values of M, drawn evenly.
    """

    def __init__(
        self, corpus: Corpus, stages: Sequence[ReaderStage], steps: int, items: int,
        sizes: Sequence[int], seed: int,
    ) -> None:  # fmt: skip
        self._random = np.random.default_rng(seed)
        self._items, self._passages = items, items // 2
        self._pools: dict[tuple[int, int], _Pool] = {}
        kinds = corpus.items.kinds.cpu().numpy()
        places = corpus.items.passages.cpu().numpy()
        short = corpus.items.ends.cpu().numpy() <= QUESTION_TOKENS
        lengths = corpus.sender.lengths.cpu().numpy()[places]
        buckets = np.searchsorted(BUCKETS, lengths)
        for kind in (CONTINUATION, QUESTION, CLOZE):
            for number in range(len(BUCKETS)):
                fits = short | (kind == CONTINUATION)
                chosen = np.flatnonzero((kinds == kind) & (buckets == number) & fits)
                if len(np.unique(places[chosen])) >= self._passages:
                    self._pools[kind, number] = _Pool(chosen, places[chosen], self._random)
        shares = np.cumsum([stage.share for stage in stages])
        self.shapes: list[StepShape] = []
        rows = []
        for step in range(steps):
            stage = stages[int(np.searchsorted(shares / shares[-1], (step + 0.5) / steps))]
            shape, drawn = self._draw(stage, sizes)
            self.shapes.append(shape)
            rows.append(drawn)
        self.rows: Tensor = torch.from_numpy(np.stack(rows))

    def _draw(
        self, stage: ReaderStage, sizes: Sequence[int]
    ) -> tuple[StepShape, npt.NDArray[np.int64]]:
        weights = {CONTINUATION: stage.continuation, QUESTION: stage.question, CLOZE: stage.cloze}
        keys = [key for key in self._pools if weights[key[0]]]
        # Kinds are drawn by their weights, and buckets by their number of passages.
        totals = {
            kind: sum(self._pools[key].passages for key in keys if key[0] == kind)
            for kind in weights
        }
        chances = np.array(
            [weights[key[0]] * self._pools[key].passages / totals[key[0]] for key in keys]
        )
        key = keys[int(self._random.choice(len(keys), p=chances / chances.sum()))]
        size, joined = int(self._random.choice(sizes)), 1
        if key[0] != CONTINUATION and self._random.random() < stage.joined:
            joined = int(self._random.choice((2, 4)))
            fits = [m for m in sizes if 128 <= m * joined <= 256]
            size = int(self._random.choice(fits or sizes))
        drawn = self._pools[key].draw(self._passages, 1 if key[0] == CONTINUATION else 2)
        rows = np.resize(drawn, self._items)
        return StepShape(key[0], size, BUCKETS[key[1]], joined), rows


class _Pool:
    """The items of one kind about the passages of one bucket."""

    def __init__(
        self, items: npt.NDArray[np.int64], places: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> None:  # fmt: skip
        order = np.argsort(places, kind="stable")
        self._sorted = items[order]
        _, self._begins, self._counts = np.unique(
            places[order], return_index=True, return_counts=True
        )
        self._random = random
        self._epoch = np.empty(0, dtype=np.int64)

    @property
    def passages(self) -> int:
        return len(self._begins)

    def draw(self, passages: int, each: int) -> npt.NDArray[np.int64]:
        """``each`` items about each of the next passages of the epoch, passage by passage."""
        if len(self._epoch) < passages:
            self._epoch = self._random.permutation(self.passages)
        chosen, self._epoch = self._epoch[:passages], self._epoch[passages:]
        counts = self._counts[chosen]
        first = self._random.integers(counts)
        picks = [first]
        if each == 2:  # another item, where there is one
            step = 1 + self._random.integers(np.maximum(counts - 1, 1))
            picks.append((first + step) % counts)
        return self._sorted[self._begins[chosen][:, None] + np.stack(picks, axis=1)].reshape(-1)
