"""A router and its peers, for the tests of its decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from bus_messages import (
    TASK,
    TOKEN,
    WIRE,
    WIRES,
    hello,
)

from agentwire.bus import instructions as act
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.routing import Router
from agentwire.errors import NackCode
from agentwire.wire import messages as m
from agentwire.wire.codec import Sealed
from agentwire.wire.events import Event, HelloReceived, MessageReceived

LIMITS = RoutingLimits(queue_messages=4, queue_bytes=1000, total_bytes=10_000, clients=2, tasks=3)
ENVELOPE = m.Envelope(bytes(16), 0, 1)


class Bus:
    """A router; each peer's identity is its name."""

    def __init__(self, limits: RoutingLimits = LIMITS, agents: Iterable[str] = ()) -> None:
        self.router = Router(wires=WIRES, token=TOKEN, limits=limits, agents=agents)

    def event(self, peer: str, event: Event, now: float = 0.0) -> list[act.Instruction]:
        return self.router.handle(peer.encode(), event, now)

    def say(
        self, peer: str, message: m.Message, now: float = 0.0, sealed: Sealed | None = None
    ) -> list[act.Instruction]:
        return self.event(peer, MessageReceived(message, ENVELOPE, sealed), now)

    def connect(self, peer: str, epoch: int, said: m.Hello) -> list[act.Instruction]:
        return self.event(peer, HelloReceived(said, epoch))

    def arrive(self, name: str, epoch: int = 1, *, id: str = "") -> list[act.Instruction]:
        return self.connect(id or name, epoch, hello(name))

    def lose(self, peer: str, reason: str) -> list[act.Instruction]:
        return self.router.disconnect(peer.encode(), reason)

    def expect(self, name: str, epoch: int) -> list[act.Instruction]:
        return self.router.command(act.Command("expect", name, epoch))

    def disconnect(self, name: str, epoch: int) -> list[act.Instruction]:
        return self.router.command(act.Command("disconnect", name, epoch))

    def sweep(self, now: float) -> list[act.Instruction]:
        return self.router.sweep(now)

    def join(self, *names: str, epoch: int = 1, id: str = "") -> None:
        """Connects clients, and agents that become ready."""
        for name in names:
            if name.startswith("client"):
                self.arrive(name, epoch, id=id)
            else:
                self.expect(name, epoch)
                self.arrive(name, epoch, id=id)
                self.say(id or name, hello(name, ready=True))

    def open(self) -> Bus:
        """Connects all three peers and defines a task, without credit."""
        self.join("llama", "mistral", "client")
        self.say("client", m.Define(TASK))
        return self


def send(peer: str, message: m.Message) -> act.Send:
    return act.Send(peer.encode(), message)


def credit(wire: str = WIRE, messages: int = 4, bytes: int = 1000) -> m.Credit:
    return m.Credit(wire, messages, bytes)


def as_from(message: m.Message, origin: str = "client") -> m.Message:
    return dataclasses.replace(message, origin=origin)  # type: ignore[call-arg]


def codes(instructions: list[act.Instruction]) -> list[NackCode]:
    return [
        i.code if isinstance(i, act.Reject) else i.message.code
        for i in instructions
        if isinstance(i, act.Reject) or (isinstance(i, act.Send) and isinstance(i.message, m.Nack))
    ]
