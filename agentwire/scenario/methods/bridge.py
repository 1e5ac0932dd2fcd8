"""Bridge: the sender reads the text, soft tokens cross, the receiver answers from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentwire.scenario.methods.base import MethodSpec, receiver_model, sender_model
from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from agentwire.runtime import Runtime
    from agentwire.scenario.methods.base import Outcome


def _describe(resolved: Resolved) -> str:
    tokens = resolved.wire.spec.soft_tokens
    return f"{sender_model(resolved)} -> {tokens} soft tokens -> {receiver_model(resolved)}"


async def _send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    wire = resolved.wire.spec
    return await runtime.send_batch(wire.sender, wire.receiver, texts, channel="soft")


BRIDGE = MethodSpec("bridge", "bridge", _describe, _send, needs_bridge=True)
