"""The models that a gateway offers: each agent, each wire, and each wire's payloads to keep.

Senders that share a wire are one model, ``a+b->c``; each one's payload can be kept for it,
``a->c:keep``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentwire.chat.errors import not_a_model
from agentwire.runtime.deployment import Deployment
from agentwire.spec.scenario import WireSpec

KEEP: Final = ":keep"


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a request goes to.

    Attributes:
        model: the name that the client gave.
        receiver: the agent that answers.
        sender: the agent that reads; None: the receiver reads the conversation itself, or what
            several senders have read.
        keeps: the payload is kept, and the answer is a handle.
        parts: the wires of senders that the receiver reads together, in the declared order.
    """

    model: str
    receiver: str
    sender: str | None = None
    keeps: bool = False
    parts: tuple[WireSpec, ...] = ()

    @property
    def wire(self) -> str | None:
        if self.parts:
            return self.parts[0].set_name
        return None if self.sender is None else f"{self.sender}->{self.receiver}"


class Catalog:
    """Names to targets.

    Args:
        wiring: agents and wires.
        created: Unix time that the models are said to be made at.
    """

    def __init__(self, deployment: Deployment, created: int) -> None:
        self._created = created
        self._targets: dict[str, Target] = {name: Target(name, name) for name in deployment.agents}
        for name, wire in deployment.wires.items():
            if wire.joint:  # its soft tokens mean something beside the others' alone
                parts = tuple(deployment.wires[f"{one}->{wire.receiver}"] for one in wire.joint)
                self._targets[wire.set_name] = Target(wire.set_name, wire.receiver, parts=parts)
            else:
                self._targets[name] = Target(name, wire.receiver, wire.sender)
            kept = Target(name + KEEP, wire.receiver, wire.sender, keeps=True)
            self._targets[name + KEEP] = kept

    @property
    def names(self) -> list[str]:
        return list(self._targets)

    @property
    def targets(self) -> Mapping[str, Target]:
        return self._targets

    def find(self, model: str) -> Target:
        """
        Raises:
            HttpError: 404, no such model.
        """
        target = self._targets.get(model)
        if target is None:
            raise not_a_model(model, self.names)
        return target

    def card(self, model: str) -> dict[str, Any]:
        """What ``/v1/models`` says of one. Errors as ``find``."""
        target = self.find(model)
        return {
            "id": target.model,
            "object": "model",
            "created": self._created,
            "owned_by": "agentwire",
        }
