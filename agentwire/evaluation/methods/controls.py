"""Controls: payloads without the text's meaning, and the sender's own answer as the only message.

If a payload of zeros or of another text does better than chance, the receiver's prompt gives the
answer away. A bridge that does no better than the label relay only transmits the sender's answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio.to_thread

from agentwire.download import OnProgress
from agentwire.errors import RequestError
from agentwire.evaluation.methods.answering import send_shuffled, send_zeros
from agentwire.evaluation.methods.base import BOTH, MethodSpec
from agentwire.evaluation.methods.local import answer_locally, local_state
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import Resolved
from agentwire.task.definitions import load_definition
from agentwire.training.baselines.baseline import receiver_model, sender_model

if TYPE_CHECKING:
    from torch import Tensor

    from agentwire.runtime.pending import Outcome
    from agentwire.runtime.runtime import Runtime

LABEL_BYTES = 1
"""Bytes that a class number needs on the wire."""


async def _send_zeros(
    runtime: Runtime,
    resolved: Resolved,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
) -> list[Outcome]:
    # Computed in this process, because an agent refuses a payload whose RMS is not the bridge's.
    if questions is not None:
        return await send_zeros(runtime, resolved, questions)
    state = local_state(runtime, resolved)

    def compute() -> Tensor:
        import torch

        receiver, task = state.context.receiver, state.context.task
        size = (1, state.context.soft_tokens, receiver.identity.width)
        with torch.inference_mode():
            logits = receiver.logits_from_soft(torch.zeros(size, device=receiver.device), task)
        return logits.expand(len(texts), -1).cpu()

    return await answer_locally(state, compute)


async def _load_held_out(runtime: Runtime, resolved: Resolved, progress: OnProgress) -> None:
    if resolved.data and load_definition(resolved.data.dataset).kind == "answer":
        return
    context = local_state(runtime, resolved).context
    await anyio.to_thread.run_sync(lambda: context.held_out)


async def _send_shuffled(
    runtime: Runtime,
    resolved: Resolved,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
) -> list[Outcome]:
    if questions is not None:
        return await send_shuffled(runtime, resolved, texts, questions)
    rows = local_state(runtime, resolved).context.held_out.rows
    seed = resolved.scenario.seed
    # The text seeds the choice, so that a resumed run gives each row the same other text.
    others = [random.Random(f"{seed}:{text}").choice(rows).text for text in texts]
    wire = resolved.wire.spec
    return await runtime.send_batch(wire.sender, wire.receiver, others, channel="soft")


async def _relay_label(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    """The sender answers, and the receiver reads the class's word in place of the text."""
    wire = resolved.wire.spec
    found: list[Outcome] = list(await runtime.direct_batch(wire.sender, texts))
    labelled = {i: one for i, one in enumerate(found) if isinstance(one, Reply)}
    if not labelled:
        return found
    words = [str(first.label) for first in labelled.values()]
    answers = await runtime.direct_batch(wire.receiver, words)
    for (i, first), answer in zip(labelled.items(), answers, strict=True):
        if isinstance(answer, RequestError):
            found[i] = answer
            continue
        stages = {
            name: first.stages.get(name, 0.0) + answer.stages.get(name, 0.0)
            for name in {**first.stages, **answer.stages}
        }
        found[i] = replace(
            answer,
            stages=stages,
            latency_ms=first.latency_ms + answer.latency_ms,
            payload_bytes=LABEL_BYTES,
            reason=first.reason,
            unread=first.unread,
        )
    return found


ZERO_PAYLOAD = MethodSpec(
    "zero_payload",
    "zero payload",
    lambda r: f"zeros -> {receiver_model(r)}",
    _send_zeros,
    kinds=BOTH,
)
SHUFFLED_PAYLOAD = MethodSpec(
    "shuffled_payload",
    "shuffled payload",
    lambda r: f"soft tokens of another text -> {receiver_model(r)}",
    _send_shuffled,
    needs_bridge=True,
    prepare=_load_held_out,
    kinds=BOTH,
)
LABEL_RELAY = MethodSpec(
    "label_relay",
    "label relay",
    lambda r: f"{sender_model(r)}'s own answer, one byte -> {receiver_model(r)}",
    _relay_label,
)
