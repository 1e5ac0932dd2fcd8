"""Linear probe: logistic regression on the mean of the states that the bridge reads."""

from __future__ import annotations

from agentwire.evaluation.methods.base import sender_model
from agentwire.evaluation.methods.local import baseline
from agentwire.scenario.resolve import Resolved


def _describe(resolved: Resolved) -> str:
    layer = resolved.choices[resolved.wire.spec.sender].layer
    return f"logistic regression on the mean of {sender_model(resolved)}'s layer {layer}"


PROBE_MEAN = baseline("probe_mean", "probe, mean", _describe)
