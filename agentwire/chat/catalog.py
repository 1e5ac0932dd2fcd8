"""The models that clients can name: each agent, each wire, and ``:keep`` for each wire.

A joint wire is one model, ``a+b->c``. Each of its senders has its own ``a->c:keep``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from agentwire.chat.errors import invalid
from agentwire.runtime.deployment import Deployment
from agentwire.spec.scenario import WireSpec

KEEP: Final = ":keep"


@dataclass(frozen=True, slots=True)
class Target:
    """The agents behind a model name."""

    model: str
    receiver: str
    sender: str | None = None  # None if the receiver reads itself, or on a joint wire
    keeps: bool = False  # the payload is kept and the answer is a handle
    joint_wires: tuple[WireSpec, ...] = ()  # one per sender of a joint wire, as declared

    @property
    def wire(self) -> str | None:
        if self.joint_wires:
            return self.joint_wires[0].set_name
        return None if self.sender is None else f"{self.sender}->{self.receiver}"


class Catalog:
    """Looks up models by name."""

    def __init__(self, deployment: Deployment) -> None:
        self._created = int(time.time())
        self._targets: dict[str, Target] = {name: Target(name, name) for name in deployment.agents}
        for name, wire in deployment.wires.items():
            if wire.joint:  # its soft tokens are meaningful only beside those of the others
                wires = tuple(deployment.wires[f"{one}->{wire.receiver}"] for one in wire.joint)
                joint = Target(wire.set_name, wire.receiver, joint_wires=wires)
                self._targets[wire.set_name] = joint
            else:
                self._targets[name] = Target(name, wire.receiver, wire.sender)
            keep = Target(name + KEEP, wire.receiver, wire.sender, keeps=True)
            self._targets[name + KEEP] = keep

    @property
    def names(self) -> list[str]:
        return list(self._targets)

    def find(self, model: str) -> Target:
        """Raises ChatError if there is no such model."""
        target = self._targets.get(model)
        if target is None:
            raise invalid(
                "model",
                f"The model {model[:80]!r} does not exist.",
                hint=f"Models: {', '.join(self.names)}.",
                code="model_not_found",
            )
        return target

    def card(self, model: str) -> dict[str, Any]:
        """The model object of OpenAI's API."""
        return {
            "id": self.find(model).model,
            "object": "model",
            "created": self._created,
            "owned_by": "agentwire",
        }
