"""A sentence encoder made for such tasks, with logistic regression on top: no language model."""

from __future__ import annotations

from agentwire.evaluation.methods.local import baseline
from agentwire.scenario.resolve import Resolved


def _describe(resolved: Resolved) -> str:
    return "logistic regression on all-MiniLM-L6-v2"


ENCODER_LINEAR = baseline("encoder_linear", "MiniLM + linear", _describe)
