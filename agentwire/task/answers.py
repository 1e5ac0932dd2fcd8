"""Scores answers in words: exact match, F1, and answers that are no answers.

As the official SQuAD v1.1 evaluation (Rajpurkar et al., 2016, arXiv:1606.05250), which HotpotQA's
also uses: answers are compared in lower case, without punctuation, articles and extra spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
LONGEST_RUN = 3
"""An answer that repeats its words more often than this in a row is a loop."""

Fault = Literal["empty", "loop", "garbage"]


def normalise_answer(text: str) -> str:
    """As the official SQuAD evaluation normalises answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the answers after normalisation."""
    wanted = normalise_answer(prediction)
    return any(normalise_answer(answer) == wanted for answer in answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 of a prediction over the answers, in 0..1."""
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
    predicted, wanted = normalise_answer(prediction).split(), normalise_answer(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    same = sum((Counter(predicted) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def fault(prediction: str) -> Fault | None:
    """What is wrong with an answer as text, whatever was asked; None if nothing is.

    ``empty``: no word is left after normalisation. ``loop``: one to four words that stand more than
    ``LONGEST_RUN`` times in a row. ``garbage``: no letter and no digit, or characters that are not
    part of any text.
    """
    if not any(character.isalnum() for character in prediction):
        return "garbage" if prediction.strip() else "empty"
    if "\ufffd" in prediction or any(ord(character) < 9 for character in prediction):
        return "garbage"
    words = prediction.lower().split()
    for step in range(1, 5):
        same = 0  # words in a row that equal the one ``step`` words before
        for earlier, word in zip(words, words[step:], strict=False):
            same = same + 1 if word == earlier else 0
            if same == step * LONGEST_RUN:
                return "loop"
    return None if normalise_answer(prediction) else "empty"
