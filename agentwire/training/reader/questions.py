"""Passages with their questions, and cloze questions that are made from the passages."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentwire.task.rows import read_answers

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_NAME = re.compile(
    r"\b(?:[A-Z][\w'-]+)(?:\s+(?:of|the|de|and|[A-Z][\w'-]+))*\s+[A-Z][\w'-]+|\b[A-Z][\w'-]{2,}"
)
_NUMBER = re.compile(r"\b\d[\d,.]*\b(?:\s+(?:percent|million|billion|years|days|people))?")
BLANK = "____"
MOST_QUESTIONS = 24
"""Questions of one passage; more are left out, so that no passage dominates."""


@dataclass(slots=True)
class Passage:
    """A text and its questions: pairs of a question and its first answer."""

    text: str
    questions: list[tuple[str, str]] = field(default_factory=list)


def read_passages(files: Iterable[Path]) -> list[Passage]:
    """Passages with their questions. Rows of all files with the same text become one passage.

    Raises:
        DataError: a file cannot be read or holds a bad row.
    """
    found: dict[str, Passage] = {}
    for file in files:
        for row in read_answers(file):
            passage = found.setdefault(row.text, Passage(row.text))
            if len(passage.questions) < MOST_QUESTIONS:
                passage.questions.append((row.question, row.answers[0]))
    return list(found.values())


def split(passages: Sequence[Passage], held_out: int) -> tuple[list[Passage], list[Passage]]:
    """Training passages and ``held_out`` others, chosen by the hash of their text."""
    ordered = sorted(passages, key=lambda p: hashlib.sha256(p.text.encode()).digest())
    return ordered[held_out:], ordered[:held_out]


def cloze(text: str, seed: int, most: int) -> list[tuple[str, str]]:
    """At most ``most`` questions and answers: a sentence without one of its names or numbers."""
    draw = random.Random(seed)
    made = []
    for sentence in _SENTENCE.split(text):
        words = len(sentence.split())
        if not 6 <= words <= 40:
            continue
        spans = [m.span() for m in (*_NAME.finditer(sentence), *_NUMBER.finditer(sentence))]
        # A name at the start may be an ordinary word with a capital.
        spans = [(a, b) for a, b in spans if a > 0 and b - a <= 40]
        if spans:
            a, b = draw.choice(spans)
            made.append((f"{sentence[:a]}{BLANK}{sentence[b:]}", sentence[a:b].strip(" .,")))
    draw.shuffle(made)
    return made[:most]
