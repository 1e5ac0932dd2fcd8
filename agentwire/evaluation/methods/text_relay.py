"""Text relay: the sender writes a message in words, the words cross, the receiver reads them.

Two kinds: the sender summarises what it read, or it passes the text on as it is (``verbatim``),
which measures what the bus and the receiver alone cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentwire.evaluation.methods.base import MethodSpec, receiver_model, sender_model
from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from agentwire.evaluation.methods.base import Outcome
    from agentwire.runtime.runtime import Runtime


def _describe(resolved: Resolved) -> str:
    return f"{sender_model(resolved)} -> its own words -> {receiver_model(resolved)}"


def _describe_verbatim(resolved: Resolved) -> str:
    return f"{sender_model(resolved)} -> the text itself -> {receiver_model(resolved)}"


async def _send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    wire = resolved.wire.spec
    return await runtime.send_batch(wire.sender, wire.receiver, texts, channel="text")


async def _send_verbatim(
    runtime: Runtime, resolved: Resolved, texts: Sequence[str]
) -> list[Outcome]:
    wire = resolved.wire.spec
    return await runtime.send_batch(
        wire.sender, wire.receiver, texts, channel="text", relay="verbatim"
    )


TEXT_RELAY = MethodSpec("text_relay", "text relay", _describe, _send)
TEXT_RELAY_VERBATIM = MethodSpec(
    "text_relay_verbatim", "text relay, verbatim", _describe_verbatim, _send_verbatim
)
