"""Texts of an exact length."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwire.benchmark.setup import count_words, counter, make_texts


@pytest.mark.parametrize("tokens", [1, 48, 512])
def test_words_are_counted_where_there_is_no_tokenizer(tokens: int, tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        texts = make_texts(counter(folder), tokens, 5, seed=1)
        assert [count_words(text) for text in texts] == [tokens] * 5


def test_a_tokenizer_decides_the_length(tiny_llama: Path) -> None:
    count = counter(tiny_llama)
    texts = make_texts(count, 40, 8, seed=3)
    assert [count(text) for text in texts] == [40] * 8
    assert len(set(texts)) == 8


def test_texts_depend_on_the_seed_alone() -> None:
    assert make_texts(count_words, 9, 4, seed=1) == make_texts(count_words, 9, 4, seed=1)
    assert make_texts(count_words, 9, 4, seed=1) != make_texts(count_words, 9, 4, seed=2)


def test_a_length_that_a_vocabulary_cannot_make_is_undercut() -> None:
    def pairs(text: str) -> int:  # only even lengths
        return 2 * len(text.split())

    (text,) = make_texts(pairs, 7, 1, seed=0)
    assert pairs(text) == 6
