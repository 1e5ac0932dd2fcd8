"""Bridge: the sender reads the text, soft tokens cross, the receiver answers from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentwire.evaluation.methods.base import MethodSpec, receiver_model, sender_model
from agentwire.scenario.resolve import Resolved
from agentwire.scenario.shares import texts_for

if TYPE_CHECKING:
    from agentwire.evaluation.methods.base import Outcome
    from agentwire.runtime.runtime import Runtime


def _describe(resolved: Resolved) -> str:
    tokens = resolved.wire.spec.soft_tokens
    parts = [part.spec for part in resolved.parts]
    if len(parts) == 1:
        return f"{sender_model(resolved)} -> {tokens} soft tokens -> {receiver_model(resolved)}"
    senders = " + ".join(resolved.choices[part.sender].model for part in parts)
    each = "a share of the text" if parts[0].reads == "share" else "the text"
    return (
        f"{senders} (each reads {each}) -> {len(parts)} x {tokens} soft tokens -> "
        f"{receiver_model(resolved)}"
    )


async def _send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    wire = resolved.wire.spec
    if wire.joint:
        rows = [texts_for(text, wire) for text in texts]
        return await runtime.fan_in_batch(wire.joint, wire.receiver, rows)
    return await runtime.send_batch(wire.sender, wire.receiver, texts, channel="soft")


BRIDGE = MethodSpec("bridge", "bridge", _describe, _send, needs_bridge=True)
