"""The methods that a scenario may name: one file each, found here by name."""

from __future__ import annotations

from collections.abc import Sequence

from agentwire.errors import ScenarioError
from agentwire.evaluation.methods.base import MethodSpec
from agentwire.evaluation.methods.bridge import BRIDGE
from agentwire.evaluation.methods.encoder_linear import ENCODER_LINEAR
from agentwire.evaluation.methods.few_shot import FEW_SHOT
from agentwire.evaluation.methods.label_relay import LABEL_RELAY
from agentwire.evaluation.methods.lora import LORA
from agentwire.evaluation.methods.payload_controls import SHUFFLED_PAYLOAD, ZERO_PAYLOAD
from agentwire.evaluation.methods.probe_attention import PROBE_ATTENTION
from agentwire.evaluation.methods.probe_mean import PROBE_MEAN
from agentwire.evaluation.methods.prompt_tuning import PROMPT_TUNING, PROMPT_TUNING_BLIND
from agentwire.evaluation.methods.receiver_direct import RECEIVER_DIRECT
from agentwire.evaluation.methods.sender_direct import SENDER_DIRECT
from agentwire.evaluation.methods.text_relay import TEXT_RELAY, TEXT_RELAY_VERBATIM
from agentwire.spec.scenario import WireSpec

METHODS: dict[str, MethodSpec] = {
    method.name: method
    for method in (
        BRIDGE,
        TEXT_RELAY,
        TEXT_RELAY_VERBATIM,
        RECEIVER_DIRECT,
        SENDER_DIRECT,
        PROBE_MEAN,
        PROBE_ATTENTION,
        ENCODER_LINEAR,
        FEW_SHOT,
        PROMPT_TUNING,
        LORA,
        ZERO_PAYLOAD,
        SHUFFLED_PAYLOAD,
        LABEL_RELAY,
        PROMPT_TUNING_BLIND,
    )
}

JOINT_METHODS = ("bridge", "receiver_direct", "sender_direct")
"""What scores a wire that several senders share; ``sender_direct`` is the first of them."""


def check_methods(wire: WireSpec, names: Sequence[str]) -> None:
    """
    Raises:
        ScenarioError: a method is about one sender, and the wire has several.
    """
    other = next((name for name in names if name not in JOINT_METHODS), None)
    if wire.joint and other is not None:
        raise ScenarioError(
            f"wire {wire.set_name}: the method {other} is about one sender.",
            hint=f"A wire with several is scored by {', '.join(JOINT_METHODS)}.",
        )


__all__ = ["METHODS", "MethodSpec", "check_methods"]
