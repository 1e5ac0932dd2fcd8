"""A router with peers that stand on its other side, for the tests of its decisions."""

from __future__ import annotations

from collections.abc import Iterable

from bus_messages import (
    TASK,
    TOKEN,
    WIRE,
    WIRES,
    hello,
)

from agentwire.bus import stimuli as s
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.routing import Router
from agentwire.errors import NackCode
from agentwire.wire import messages as m

LIMITS = RoutingLimits(lane_messages=4, lane_bytes=1000, total_bytes=10_000, clients=2, tasks=3)


class Bus:
    """A router, and the identities that stand for its peers."""

    def __init__(self, limits: RoutingLimits = LIMITS, agents: Iterable[str] = ()) -> None:
        self.router = Router(wires=WIRES, token=TOKEN, limits=limits, agents=agents)

    def do(self, stimulus: s.Stimulus, now: float = 0.0) -> list[s.Instruction]:
        return self.router.handle(stimulus, now)

    def say(self, peer: str, message: m.Message, now: float = 0.0) -> list[s.Instruction]:
        return self.do(s.Said(peer.encode(), message), now)

    def arrive(self, name: str, epoch: int = 1, *, id: str = "") -> list[s.Instruction]:
        return self.do(s.Arrived((id or name).encode(), epoch, hello(name)))

    def join(self, *names: str, epoch: int = 1, id: str = "") -> None:
        """Agents arrive and are ready; clients arrive."""
        for name in names:
            if name.startswith("client"):
                self.arrive(name, epoch, id=id)
            else:
                self.do(s.Expect(name, epoch))
                self.arrive(name, epoch, id=id)
                self.say(id or name, hello(name, ready=True))

    def open(self) -> Bus:
        """All three peers and a task, without credit."""
        self.join("llama", "mistral", "client")
        self.say("client", m.Define(TASK))
        return self


def send(peer: str, message: m.Message) -> s.Send:
    return s.Send(peer.encode(), message)


def credit(wire: str = WIRE, messages: int = 4, bytes: int = 1000) -> m.Credit:
    return m.Credit(wire, messages, bytes)


def as_from(message: m.Message, origin: str = "client") -> m.Message:
    return m.with_origin(message, origin)


def codes(instructions: list[s.Instruction]) -> list[NackCode]:
    return [
        i.code if isinstance(i, s.Reject) else i.message.code
        for i in instructions
        if isinstance(i, s.Reject) or (isinstance(i, s.Send) and isinstance(i.message, m.Nack))
    ]
