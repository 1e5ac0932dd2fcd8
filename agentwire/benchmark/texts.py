"""Made-up texts of an exact length, so that every batch of a benchmark does the same work."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

_FREQUENT = """
the film story cast music scene light time world heart night house water road city voice
hand face life love war child woman man friend year day place part line book word game work
good bad long short new old small great slow fast dark warm cold deep high low true strong
with from into over under about after before and but for not that this they have will can
"""
WORDS = tuple(_FREQUENT.split())
"""Frequent words: one token each in most vocabularies."""
ATTEMPTS = 200

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """Stands in for a tokenizer that is not on this machine."""
    return len(text.split())


def counter(folder: Path | str | None) -> Count:
    """Counts tokens with the tokenizer in ``folder``, or words if there is none."""
    file = None if folder is None else Path(folder, "tokenizer.json")
    if file is None or not file.is_file():
        return count_words
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def make_texts(count: Count, tokens: int, amount: int, seed: int) -> list[str]:
    """``amount`` texts of ``tokens`` tokens each, or of the nearest length below that was found."""
    draw = random.Random(f"{seed} {tokens}")
    return [_text(count, tokens, draw) for _ in range(amount)]


def _text(count: Count, tokens: int, draw: random.Random) -> str:
    words = [draw.choice(WORDS) for _ in range(tokens)]
    best = ""
    for _ in range(ATTEMPTS):
        text = " ".join(words)
        size = count(text)
        if size == tokens:
            return text
        if size < tokens:
            best = text
            words.append(draw.choice(WORDS))
        else:
            del words[: max(1, min(size - tokens, len(words) - 1))]
    return best or WORDS[0]
