"""LoRA: adapters on the receiver's model, which reads the text itself."""

from __future__ import annotations

from agentwire.evaluation.methods.base import receiver_model
from agentwire.evaluation.methods.local import baseline
from agentwire.scenario.resolve import Resolved


def _describe(resolved: Resolved) -> str:
    return f"{receiver_model(resolved)} with adapters reads the text itself"


LORA = baseline("lora", "LoRA", _describe)
