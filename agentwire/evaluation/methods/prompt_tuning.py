"""Prompt tuning: trained vectors before the text; and a blind control that reads no text."""

from __future__ import annotations

from agentwire.evaluation.methods.base import receiver_model
from agentwire.evaluation.methods.local import baseline
from agentwire.scenario.resolve import Resolved


def _describe(resolved: Resolved) -> str:
    return f"{receiver_model(resolved)} reads a trained prompt and the text"


def _describe_blind(resolved: Resolved) -> str:
    return f"{receiver_model(resolved)} reads a trained prompt, and no text"


PROMPT_TUNING = baseline("prompt_tuning", "prompt tuning", _describe)
PROMPT_TUNING_BLIND = baseline("prompt_tuning_blind", "prompt tuning, blind", _describe_blind)
