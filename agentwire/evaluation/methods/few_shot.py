"""Few-shot: the receiver's model reads solved training examples, then the text."""

from __future__ import annotations

from agentwire.evaluation.methods.base import receiver_model
from agentwire.evaluation.methods.local import baseline
from agentwire.scenario.resolve import Resolved


def _describe(resolved: Resolved) -> str:
    return f"{receiver_model(resolved)} reads solved examples and the text"


FEW_SHOT = baseline("few_shot", "few-shot", _describe)
