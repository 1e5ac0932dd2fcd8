"""Methods that run on the agents: the bridge, text relay, and each model alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from agentwire.evaluation.methods.base import BOTH, MethodSpec
from agentwire.scenario.resolve import Resolved
from agentwire.scenario.shares import texts_for
from agentwire.training.baselines.baseline import receiver_model, sender_model

if TYPE_CHECKING:
    from agentwire.runtime.call_options import RelayMode
    from agentwire.runtime.pending import Outcome
    from agentwire.runtime.runtime import Runtime


def _describe_bridge(resolved: Resolved) -> str:
    tokens = resolved.wire.spec.soft_tokens or "M"
    parts = [part.spec for part in resolved.parts]
    if len(parts) == 1:
        return f"{sender_model(resolved)} -> {tokens} soft tokens -> {receiver_model(resolved)}"
    senders = " + ".join(resolved.choices[part.sender].model for part in parts)
    each = "a share of the text" if parts[0].reads == "share" else "the text"
    return (
        f"{senders} (each reads {each}) -> {len(parts)} x {tokens} soft tokens -> "
        f"{receiver_model(resolved)}"
    )


async def _send_soft(
    runtime: Runtime,
    resolved: Resolved,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
) -> list[Outcome]:
    wire = resolved.wire.spec
    if wire.joint:
        rows = [texts_for(text, wire) for text in texts]
        return await runtime.fan_in_batch(wire.joint, wire.receiver, rows)
    return await runtime.send_batch(
        wire.sender, wire.receiver, texts, channel="soft", question=questions
    )


async def _relay(
    runtime: Runtime,
    resolved: Resolved,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
    *,
    relay: RelayMode | None = None,
) -> list[Outcome]:
    ends = (resolved.wire.spec.sender, resolved.wire.spec.receiver)
    return await runtime.send_batch(*ends, texts, channel="text", relay=relay, question=questions)


async def _direct(
    runtime: Runtime,
    resolved: Resolved,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
    *,
    end: Literal["sender", "receiver"],
) -> list[Outcome]:
    agent = resolved.wire.spec.sender if end == "sender" else resolved.wire.spec.receiver
    return await runtime.direct_batch(agent, texts, question=questions)


BRIDGE = MethodSpec(
    "bridge",
    "bridge",
    _describe_bridge,
    _send_soft,
    needs_bridge=True,
    several_senders=True,
    kinds=BOTH,
)
TEXT_RELAY = MethodSpec(
    "text_relay",
    "text relay",
    lambda r: f"{sender_model(r)} -> its own words -> {receiver_model(r)}",
    _relay,
    kinds=BOTH,
)
# Measures what the bus and the receiver cost without a summary.
TEXT_RELAY_VERBATIM = MethodSpec(
    "text_relay_verbatim",
    "text relay, verbatim",
    lambda r: f"{sender_model(r)} -> the text itself -> {receiver_model(r)}",
    partial(_relay, relay="verbatim"),
    kinds=BOTH,
)
RECEIVER_DIRECT = MethodSpec(
    "receiver_direct",
    "receiver direct",
    lambda r: f"{receiver_model(r)} reads the text itself",
    partial(_direct, end="receiver"),
    several_senders=True,
    kinds=BOTH,
)
SENDER_DIRECT = MethodSpec(
    "sender_direct",
    "sender direct",
    lambda r: f"{sender_model(r)} reads the text itself",
    partial(_direct, end="sender"),
    several_senders=True,
    kinds=BOTH,
)
