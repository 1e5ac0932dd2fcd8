"""The router under any order of events: it never raises and never exceeds its limits."""

from __future__ import annotations

from collections import Counter

from bus_messages import TASK, TOKEN, WIRE, WIRES, bridge, encode, hello, result, rows, soft, text
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentwire.bus.flow import RoutingLimits
from agentwire.bus.instructions import Admit, Command, Disconnect, Instruction, Reject, Send
from agentwire.bus.routing import Router
from agentwire.errors import NackCode
from agentwire.wire import messages as m
from agentwire.wire.events import (
    Event,
    HelloReceived,
    MessageReceived,
    MessageRefused,
    PeerBusy,
    PeerLeft,
)

LIMITS = RoutingLimits(queue_messages=3, queue_bytes=100, total_bytes=300, clients=2, tasks=2)
ENVELOPE = m.Envelope(bytes(16), 0, 1)
NAMES = ("llama", "mistral", "client", "client-two", "client-three", "nobody")
ids = st.integers(1, 6)
messages = st.one_of(
    st.builds(encode, ids, ms_left=st.none() | st.integers(0, 500)),
    st.builds(soft, ids, origin=st.sampled_from(["client", "client-two", "gone"])),
    st.builds(lambda i: text(i, wire=WIRE, origin="client"), ids),
    st.builds(lambda i: text(i, wire="@llama"), ids),
    st.builds(result, ids, origin=st.sampled_from(["client", "gone"])),
    st.builds(m.Credit, st.sampled_from([WIRE, "@llama", "x->y"]), st.integers(0, 9), st.just(500)),
    st.builds(lambda i: m.Nack(NackCode.MODEL_ERROR, "no", WIRE, rows(i), origin="client"), ids),
    st.just(m.Nack(NackCode.BRIDGE_MISMATCH, "no", WIRE)),
    st.just(m.Offer(WIRE, bridge())),
    st.builds(m.Accept, st.just(WIRE), st.sampled_from(["b" * 64, "c" * 64])),
    st.just(m.Define(TASK)),
    st.builds(lambda n: m.Define(m.TaskSpec(f"t{n}", "p", "{text}")), st.integers(0, 4)),
    st.builds(lambda i: m.Cancel(WIRE, (i.to_bytes(16, "big"),)), ids),
    st.just(m.Progress("load", 0.5)),
    st.sampled_from([hello("llama", ready=True), hello("mistral", ready=True)]),
)


class RoutingMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.router = Router(wires=WIRES, token=TOKEN, limits=LIMITS)
        self.now = 0.0
        self.admitted: set[bytes] = set()
        self.sent: Counter[str] = Counter()

    def handle(self, peer: str, event: Event) -> None:
        self.carry_out_all(self.router.handle(peer.encode(), event, self.now))

    def carry_out_all(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self.carry_out(instruction)

    def carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Admit(peer):
                assert peer not in self.admitted
                self.admitted.add(peer)
            case Send(peer, message):
                assert peer in self.admitted, "nothing is sent to a stranger"
                assert not (isinstance(message, m.Result) and peer in (b"llama", b"mistral"))
                self.sent[type(message).__name__] += 1
            case Disconnect(peer):
                self.admitted.discard(peer)
            case Reject(peer):
                assert peer not in self.admitted

    @rule(name=st.sampled_from(NAMES), epoch=st.integers(0, 4), good=st.booleans())
    def arrive(self, name: str, epoch: int, good: bool) -> None:
        peer = f"{name} {epoch}"
        if peer.encode() not in self.admitted:
            said = hello(name, token=TOKEN if good else "0")
            self.handle(peer, HelloReceived(said, epoch))

    @rule(name=st.sampled_from(("llama", "mistral")), epoch=st.integers(0, 4))
    def expect(self, name: str, epoch: int) -> None:
        self.carry_out_all(self.router.command(Command("expect", name, epoch)))

    @rule(name=st.sampled_from(NAMES), epoch=st.integers(0, 4))
    def disconnect(self, name: str, epoch: int) -> None:
        self.carry_out_all(self.router.command(Command("disconnect", name, epoch)))

    @rule(name=st.sampled_from(NAMES), epoch=st.integers(0, 4), message=messages)
    def say(self, name: str, epoch: int, message: m.Message) -> None:
        self.handle(f"{name} {epoch}", MessageReceived(message, ENVELOPE))

    @rule(name=st.sampled_from(NAMES), epoch=st.integers(0, 4), row=ids)
    def refuse(self, name: str, epoch: int, row: int) -> None:
        refused = MessageRefused(NackCode.CHECKSUM, "no", WIRE, rows(row), "client")
        self.handle(f"{name} {epoch}", refused)

    @rule(name=st.sampled_from(NAMES), epoch=st.integers(0, 4), busy=st.integers(0, 9))
    def report(self, name: str, epoch: int, busy: int) -> None:
        self.handle(f"{name} {epoch}", PeerBusy(name, epoch, busy))

    @rule(name=st.sampled_from(NAMES), epoch=st.integers(0, 4), goodbye=st.booleans())
    def depart(self, name: str, epoch: int, goodbye: bool) -> None:
        if goodbye:
            self.handle(f"{name} {epoch}", PeerLeft(name, epoch, "gone"))
        else:
            self.carry_out_all(self.router.disconnect(f"{name} {epoch}".encode(), "gone"))

    @rule(seconds=st.floats(0, 1))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out_all(self.router.sweep(self.now))

    @invariant()
    def it_holds_no_more_than_it_may(self) -> None:
        gauges = self.router.gauges()
        lanes = 2 * 3  # producers that can be here at once, on each hop, at most
        assert 0 <= gauges["queued_bytes"] <= LIMITS.total_bytes
        assert 0 <= gauges["queued_messages"] <= lanes * LIMITS.queue_messages * 2
        assert gauges["tasks"] <= LIMITS.tasks
        assert gauges["peers"] == len(self.admitted) <= 2 + LIMITS.clients


TestRouting = RoutingMachine.TestCase
TestRouting.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
