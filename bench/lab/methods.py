"""What the methods are, for readers of the record."""

from __future__ import annotations


def _method(title: str, kind: str, about: str, *, trained: bool = True) -> dict[str, object]:
    return {"title": title, "kind": kind, "trained": trained, "about": about}


METHODS = {
    "bridge": _method("bridge", "bridge", "8 soft tokens; the receiver never sees the text"),
    "probe_mean": _method(
        "probe, mean", "baseline", "logistic regression on the mean of the same states"
    ),
    "probe_attention": _method(
        "probe, attention", "baseline", "a linear layer on the same states, pooled by attention"
    ),
    "prompt_tuning": _method(
        "prompt tuning", "baseline", "a soft prompt, and the receiver reads the text"
    ),
    "lora": _method("LoRA", "baseline", "adapters on the receiver, which reads the text"),
    "lora_relay": _method(
        "text relay, LoRA",
        "baseline",
        "adapters trained on, and reading, the sender's summaries (of 3,000 training rows)",
    ),
    "lora_reads_relay": _method(
        "text relay, LoRA on texts", "baseline", "adapters trained on texts read the summaries"
    ),
    "few_shot": _method(
        "few-shot", "baseline", "the receiver reads solved examples and the text", trained=False
    ),
    "text_relay": _method(
        "text relay", "baseline", "the receiver reads the sender's summary", trained=False
    ),
    "text_relay_verbatim": _method(
        "text relay, verbatim",
        "baseline",
        "the text crosses: the receiver reads what receiver direct reads",
        trained=False,
    ),
    "sender_direct": _method(
        "sender direct", "baseline", "the sender reads the text and answers", trained=False
    ),
    "receiver_direct": _method(
        "receiver direct", "baseline", "the receiver reads the text and answers", trained=False
    ),
    "encoder_linear": _method(
        "MiniLM + linear", "baseline", "a sentence encoder with logistic regression"
    ),
    "zero_payload": _method(
        "zero payload", "control", "the bridge's receiver gets zeros", trained=False
    ),
    "shuffled_payload": _method(
        "shuffled payload", "control", "every row gets another row's payload", trained=False
    ),
    "label_relay": _method(
        "label relay", "control", "one byte crosses: the sender's own answer", trained=False
    ),
    "prompt_tuning_blind": _method(
        "prompt tuning, blind", "control", "a soft prompt instead of soft tokens, no text"
    ),
    "random_sender": _method(
        "random sender", "control", "the same bridge on a sender with random weights"
    ),
}
