"""Held-out training rows, which choose steps, layers and rates instead of test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from agentwire.errors import DataError
from agentwire.task.datasets import Dataset
from agentwire.task.rows import AnswerRow, normalise, rows_sha256


def held_out_split(dataset: Dataset, n: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits a training split into training rows and n held-out rows, depending on the seed.

    The held-out rows are the first n *whole* texts in the order of sha256(seed, words). A text that
    is part of another row is not whole. Training rows that are part of a held-out text, or equal to
    it, are dropped: SST-2's training split contains phrases of its sentences, and a phrase of a
    held-out sentence in training would let the held-out accuracy measure memory. Both parts keep
    the source's order.

    Raises:
        DataError: ``n`` is not between 1 and half of the rows, or too few texts are whole.
    """
    if not 1 <= n <= len(dataset.rows) // 2:
        raise _too_many(dataset, n)
    words = [normalise(row.text) for row in dataset.rows]
    chosen = _whole_texts(words, n, seed)
    if len(chosen) < n:
        raise DataError(
            f"Only {len(chosen)} texts of {dataset.name} {dataset.split} are not part of another.",
            hint=f"Set `held_out` to at most {len(chosen)}.",
        )
    held_words = {words[i] for i in chosen}
    inside = _Texts(sorted(held_words))
    kept = [i for i, text in enumerate(words) if not inside.contain(text)]

    def part(name: str, indices: Sequence[int]) -> Dataset:
        rows = tuple(dataset.rows[i] for i in sorted(indices))
        marks = {"part": f"{name} (n={n}, seed={seed})", "rows_sha256": rows_sha256(rows)}
        return replace(dataset, rows=rows, provenance={**dataset.provenance, **marks})

    return part("train", kept), part("held_out", chosen)


def _too_many(dataset: Dataset[Any], n: int) -> DataError:
    return DataError(
        f"Cannot hold out {n} of the {len(dataset.rows)} rows of {dataset.name} {dataset.split}.",
        hint="Set `held_out` to at most half of the training rows.",
    )


class _Texts:
    """An index of texts by word, to find those that contain a given text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._lines = [f" {text} " for text in texts]
        self._holders: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            for word in set(text.split()):
                self._holders.setdefault(word, []).append(index)
        # A text in two successive rows counts as part of another. There is no reason for that, but
        # the shipped bridges were chosen on such splits.
        self._doubled = {text for text, after in pairwise(texts) if text == after}

    def _holding(self, text: str) -> Iterator[str]:
        """The texts that contain ``text`` or are equal to it."""
        places = [self._holders.get(word, ()) for word in text.split()]
        wanted = f" {text} "
        for index in min(places, key=len, default=()):
            if wanted in self._lines[index]:
                yield self._lines[index]

    def contain(self, text: str) -> bool:
        """Whether any of the texts contains ``text`` or is equal to it."""
        return any(True for _ in self._holding(text))

    def extend(self, text: str) -> bool:
        """Whether a longer one of the texts contains ``text``."""
        longer = any(len(line) > len(text) + 2 for line in self._holding(text))
        return longer or text in self._doubled


def _whole_texts(words: Sequence[str], n: int, seed: int) -> list[int]:
    """Indices of the first n distinct texts in hash order that are not part of another."""
    texts = _Texts(words)
    keys = [hashlib.sha256(f"{seed}:{text}".encode()).digest() for text in words]
    chosen: list[int] = []
    seen: set[str] = set()
    for index in sorted(range(len(words)), key=keys.__getitem__):
        text = words[index]
        if not text or text in seen or texts.extend(text):
            continue
        seen.add(text)
        chosen.append(index)
        if len(chosen) == n:
            break
    return chosen


SHINGLE = 13
"""Words in a row that two passages must not share (the n-gram of the GPT-3 contamination study)."""


class Passages:
    """An index of passages, to find texts that overlap with one of them.

    Two texts overlap if their words are the same, or if they share 13 words in a row.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._known = {key for text in texts for key in _shingles(text)}

    def overlap(self, text: str) -> bool:
        """Whether ``text`` overlaps with a passage."""
        return any(key in self._known for key in _shingles(text))


def _shingles(text: str) -> Iterator[str]:
    """All runs of 13 words of a text, and the text itself where it is shorter."""
    words = normalise(text).split()
    for start in range(max(len(words) - SHINGLE, 0) + 1):
        yield " ".join(words[start : start + SHINGLE])


def without_overlap(dataset: Dataset[AnswerRow], *scored: Dataset[AnswerRow]) -> Dataset[AnswerRow]:
    """The rows whose passage does not overlap with a passage of the ``scored`` rows."""
    index = Passages({row.text for data in scored for row in data.rows})
    overlapping = {text for text in {row.text for row in dataset.rows} if index.overlap(text)}
    kept = tuple(row for row in dataset.rows if row.text not in overlapping)
    dropped = len(dataset.rows) - len(kept)
    marks = {"overlap": f"{dropped} rows dropped", "rows_sha256": rows_sha256(kept)}
    return replace(dataset, rows=kept, provenance={**dataset.provenance, **marks})


def held_out_passages(
    dataset: Dataset[AnswerRow], n: int, seed: int = 0
) -> tuple[Dataset[AnswerRow], Dataset[AnswerRow]]:
    """Splits questions by passage into training rows and at least n held-out rows.

    Passages are held out in the order of sha256(seed, words), each with all its questions, until
    there are n rows. Training rows whose passage overlaps with a held-out one are dropped.

    Raises:
        DataError: ``n`` is not between 1 and half of the rows.
    """
    if not 1 <= n <= len(dataset.rows) // 2:
        raise _too_many(dataset, n)
    by_passage: dict[str, list[AnswerRow]] = {}
    for row in dataset.rows:
        by_passage.setdefault(normalise(row.text), []).append(row)
    order = sorted(by_passage, key=lambda w: hashlib.sha256(f"{seed}:{w}".encode()).digest())
    chosen: set[str] = set()
    rows = 0
    for words in order:
        if rows >= n:
            break
        chosen.add(words)
        rows += len(by_passage[words])
    held = tuple(row for row in dataset.rows if normalise(row.text) in chosen)
    marks = {"part": f"held_out (n={n}, seed={seed})", "rows_sha256": rows_sha256(held)}
    held_out = replace(dataset, rows=held, provenance={**dataset.provenance, **marks})
    kept = without_overlap(dataset, held_out)
    marks = {"part": f"train (n={n}, seed={seed})"}
    return replace(kept, provenance={**kept.provenance, **marks}), held_out
