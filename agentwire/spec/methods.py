"""The methods and baselines that a scenario can compare, by name (docs/methods.md).

Other packages add theirs through the entry point group ``agentwire.methods``. An entry is an
``evaluation.methods.MethodSpec`` or a ``training.baselines.baseline.Baseline``.
"""

from __future__ import annotations

from typing import Annotated, Any

from agentwire.spec.registry import Registry, known_name

METHODS: Registry[Any] = Registry("agentwire.methods", "method")

_METHODS, _BASELINES = "agentwire.evaluation.methods", "agentwire.training.baselines"
METHODS.lazy("bridge", f"{_METHODS}.wire:BRIDGE")
METHODS.lazy("text_relay", f"{_METHODS}.wire:TEXT_RELAY")
METHODS.lazy("text_relay_verbatim", f"{_METHODS}.wire:TEXT_RELAY_VERBATIM")
METHODS.lazy("receiver_direct", f"{_METHODS}.wire:RECEIVER_DIRECT")
METHODS.lazy("sender_direct", f"{_METHODS}.wire:SENDER_DIRECT")
for _name in ("question_only", "token_budget", "summary_budget", "receiver_few_shot"):
    METHODS.lazy(_name, f"{_METHODS}.answering:{_name.upper()}")
METHODS.lazy("mean_payload", f"{_METHODS}.answering:MEAN_PAYLOAD")
METHODS.lazy("probe_mean", f"{_BASELINES}.probe:PROBE_MEAN")
METHODS.lazy("probe_attention", f"{_BASELINES}.probe:PROBE_ATTENTION")
METHODS.lazy("encoder_linear", f"{_BASELINES}.encoder:ENCODER_LINEAR")
METHODS.lazy("few_shot", f"{_BASELINES}.few_shot:FEW_SHOT")
METHODS.lazy("prompt_tuning", f"{_BASELINES}.tuning:PROMPT_TUNING")
METHODS.lazy("lora", f"{_BASELINES}.tuning:LORA")
METHODS.lazy("lora_relay", f"{_BASELINES}.tuning:LORA_RELAY")
METHODS.lazy("zero_payload", f"{_METHODS}.controls:ZERO_PAYLOAD")
METHODS.lazy("shuffled_payload", f"{_METHODS}.controls:SHUFFLED_PAYLOAD")
METHODS.lazy("label_relay", f"{_METHODS}.controls:LABEL_RELAY")
METHODS.lazy("prompt_tuning_blind", f"{_BASELINES}.tuning:PROMPT_TUNING_BLIND")
METHODS.lazy("random_sender", f"{_BASELINES}.random_sender:RANDOM_SENDER")

MethodName = Annotated[str, known_name(METHODS)]
