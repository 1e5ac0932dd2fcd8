"""Agents with fake models for benchmarks: real processes on the real bus, with deterministic
answers and configurable compute times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentwire.runtime.deployment import Deployment
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import RelaySpec, TaskSpec

TASK: Final = TaskSpec(
    "task", "Answer:", "{text}\nAnswer:", ("good", "bad", "mixed"), RelaySpec("", 8)
)


def wire_of(sender: str, receiver: str, **settings: Any) -> WireSpec:
    """A wire between two agents, with ``settings`` as in a scenario."""
    return WireSpec.model_validate({"from": sender, "to": receiver, **settings})


def agents_of(
    wire: WireSpec, sends: FakeModel, receives: FakeModel, **settings: Any
) -> dict[str, AgentSpec]:
    """A wire's sender, with a fake bridge, and its receiver.

    Args:
        settings: of both agents (``AgentSpec``); each has one thread.
    """
    bridge = OutgoingBridge(wire=wire.name, receiver=wire.receiver, folder="fake:receiver-model")
    ends = ((wire.sender, "sender", sends, (bridge,)), (wire.receiver, "receiver", receives, ()))
    return {
        name: AgentSpec(
            name=name,
            backend="fake",
            model=f"{role}-model",
            threads=1,
            bridges=bridges,
            fake=fake,
            **settings,
        )
        for name, role, fake, bridges in ends
    }


def two_agents(
    sends: FakeModel,
    receives: FakeModel,
    *,
    wire: Mapping[str, Any],
    replicas: Mapping[str, int] | None = None,
    **settings: Any,
) -> Deployment:
    """``sender``, ``receiver`` and the wire between them.

    Args:
        wire: its settings, as in a scenario.
        settings: as for ``agents_of``.
    """
    only = wire_of("sender", "receiver", **wire)
    agents = agents_of(only, sends, receives, **settings)
    return Deployment.of_specs(agents, [only], task=TASK, replicas=dict(replicas or {}))
