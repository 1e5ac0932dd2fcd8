"""Linear probe: the states that the bridge reads, pooled by learned attention."""

from __future__ import annotations

from agentwire.evaluation.methods.base import sender_model
from agentwire.evaluation.methods.local import baseline
from agentwire.scenario.resolve import Resolved


def _describe(resolved: Resolved) -> str:
    layer = resolved.choices[resolved.wire.spec.sender].layer
    return f"attention-pooled linear probe on {sender_model(resolved)}'s layer {layer}"


PROBE_ATTENTION = baseline("probe_attention", "probe, attention", _describe)
