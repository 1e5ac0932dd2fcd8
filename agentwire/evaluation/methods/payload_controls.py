"""Controls of the bridge's payload: zeros, and the payload of another text.

If either does better than chance, the receiver's prompt gives the answer away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio.to_thread

from agentwire.evaluation.methods.base import MethodSpec, Tell, receiver_model
from agentwire.evaluation.methods.local import answered, host_of
from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from torch import Tensor

    from agentwire.evaluation.methods.base import Outcome
    from agentwire.runtime.runtime import Runtime


def _describe_zero(resolved: Resolved) -> str:
    return f"zeros -> {receiver_model(resolved)}"


def _describe_shuffled(resolved: Resolved) -> str:
    return f"soft tokens of another text -> {receiver_model(resolved)}"


async def _send_zero(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    # In this process: an agent refuses a payload whose RMS is not the bridge's.
    host = host_of(runtime, resolved)

    def compute() -> Tensor:
        import torch

        receiver, task = host.setting.receiver, host.setting.task
        size = (1, resolved.wire.spec.soft_tokens, receiver.identity.width)
        with torch.inference_mode():
            logits = receiver.logits_from_soft(torch.zeros(size, device=receiver.device), task)
        return logits.expand(len(texts), -1).cpu()

    return await answered(host, compute)


async def _load_others(runtime: Runtime, resolved: Resolved, tell: Tell) -> None:
    setting = host_of(runtime, resolved).setting
    await anyio.to_thread.run_sync(lambda: setting.held_out)


async def _send_shuffled(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str]
) -> list[Outcome]:
    others = host_of(runtime, resolved).setting.held_out.rows
    seed = resolved.scenario.seed
    # Seeded by the text, so that a resumed run gives every row the same stranger.
    strangers = [random.Random(f"{seed}:{text}").choice(others).text for text in texts]
    wire = resolved.wire.spec
    return await runtime.send_batch(wire.sender, wire.receiver, strangers, channel="soft")


ZERO_PAYLOAD = MethodSpec("zero_payload", "zero payload", _describe_zero, _send_zero)
SHUFFLED_PAYLOAD = MethodSpec(
    "shuffled_payload",
    "shuffled payload",
    _describe_shuffled,
    _send_shuffled,
    needs_bridge=True,
    prepare=_load_others,
)
