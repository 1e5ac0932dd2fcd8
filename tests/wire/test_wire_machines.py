"""Credit, dedup and sessions under random orders of events, compared with a model."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentwire.agent.replies import Dedup, Seen
from agentwire.errors import LocalProtocolError
from agentwire.wire import messages as m
from agentwire.wire.credit import CreditGate, CreditWindow
from agentwire.wire.events import DuplicateDropped, MessageReceived, Outgoing, PeerLost
from agentwire.wire.session import Session, Side, State

WIRE = "a->b"
RUN = bytes(range(16))
PLAY = settings(max_examples=40, stateful_step_count=40, deadline=None)


class CreditMachine(RuleBasedStateMachine):
    """A producer and a consumer with a link between them that only delays."""

    @initialize(messages=st.integers(1, 8), size=st.integers(1, 1000))
    def start(self, messages: int, size: int) -> None:
        self.most, self.bytes = messages, size
        self.gate, self.window = CreditGate(), CreditWindow(messages, size)
        self.grants: deque[tuple[int, int]] = deque()
        self.travelling: deque[int] = deque()
        self.waiting: deque[int] = deque()
        self.largest = 0
        self.grant(self.window.open())

    def grant(self, grant: object) -> None:
        if grant is not None:
            self.grants.append((grant.messages, grant.bytes))  # type: ignore[attr-defined]

    @rule(size=st.integers(0, 3000))
    def produce(self, size: int) -> None:
        if self.gate.take(WIRE, size):
            self.travelling.append(size)
            self.largest = max(self.largest, size)

    @precondition(lambda self: self.grants)
    @rule()
    def credit_arrives(self) -> None:
        self.gate.add(WIRE, *self.grants.popleft())

    @precondition(lambda self: self.travelling)
    @rule()
    def message_arrives(self) -> None:
        size = self.travelling.popleft()
        self.window.arrived(size)  # never more than was granted
        self.waiting.append(size)

    @precondition(lambda self: self.waiting)
    @rule()
    def consume(self) -> None:
        self.grant(self.window.consumed(self.waiting.popleft()))

    @invariant()
    def the_consumer_holds_its_window_and_one_message_more(self) -> None:
        held = [*self.travelling, *self.waiting]
        assert len(held) <= self.most
        assert sum(held) <= self.bytes + self.largest

    @invariant()
    def nobody_is_stuck(self) -> None:
        if not (self.grants or self.travelling or self.waiting):
            assert self.gate.allows(WIRE)


class DedupMachine(RuleBasedStateMachine):
    """Against a dictionary that never forgets on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dedup: Dedup[int, str] = Dedup(in_progress=3, replies=4, reply_bytes=40)
        self.busy: set[int] = set()
        self.answers: dict[int, str] = {}

    @rule(key=st.integers(0, 9))
    def begin(self, key: int) -> None:
        found = self.dedup.begin(key)
        match found.seen:
            case Seen.DONE:
                assert found.reply == self.answers[key]
            case Seen.IN_PROGRESS:
                assert key in self.busy
            case Seen.FULL:
                assert len(self.busy) == 3 and key not in self.busy
            case Seen.NEW:
                assert key not in self.busy
                self.busy.add(key)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), size=st.integers(0, 60))
    def finish(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.dedup.finish(key, f"answer {key}", size)
        self.busy.discard(key)
        self.answers[key] = f"answer {key}"

    @rule(key=st.integers(0, 9))
    def forget(self, key: int) -> None:
        self.dedup.forget(key)
        self.busy.discard(key)

    @invariant()
    def it_stays_small(self) -> None:
        assert self.dedup.in_progress == len(self.busy) <= 3
        assert 0 <= self.dedup.reply_bytes <= 40


class SessionMachine(RuleBasedStateMachine):
    """Two ends and a link that loses, repeats and swaps messages."""

    def __init__(self) -> None:
        super().__init__()
        hello = m.Hello("llama", m.Role.AGENT, token="c0ffee")
        self.peer = Session(Side.PEER, run=RUN, epoch=1, now=0.0, hello=hello)
        self.broker = Session(Side.BROKER, run=RUN, epoch=1, now=0.0)
        self.broker.receive(self.peer.open(0.0), 0.0)
        self.peer.receive(self.broker.welcome(0.0), 0.0)
        self.link: deque[list[bytes | memoryview]] = deque()
        self.sent = 0
        self.taken: list[int] = []
        self.lost = False
        self.now = 0.0

    @rule()
    def say(self) -> None:
        self.sent += 1
        self.link.append(self.peer.send(m.Credit(WIRE, self.sent, 1), self.now))

    @precondition(lambda self: self.link)
    @rule(repeat=st.booleans())
    def deliver(self, repeat: bool) -> None:
        frames = self.link[0] if repeat else self.link.popleft()
        for event in self.broker.receive(frames, self.now):
            match event:
                case MessageReceived(m.Credit(_, number, _)):
                    self.taken.append(number)
                case PeerLost():
                    self.lost = True
                case DuplicateDropped() | Outgoing():
                    pass
                case _:
                    raise AssertionError(event)

    @precondition(lambda self: self.link)
    @rule()
    def lose(self) -> None:
        self.link.popleft()

    @precondition(lambda self: len(self.link) > 1)
    @rule()
    def swap(self) -> None:
        self.link.rotate(1)

    @rule(seconds=st.floats(0, 0.5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def say_what_is_not_allowed(self) -> None:
        before = self.sent
        try:
            self.peer.send(m.Define(m.TaskSpec("t", "p", "{text}")), self.now)
        except LocalProtocolError:
            assert self.sent == before
        else:
            raise AssertionError("an agent does not define tasks")

    @invariant()
    def messages_arrive_once_in_order_and_without_gaps(self) -> None:
        assert self.taken == list(range(1, len(self.taken) + 1))
        assert self.lost == (self.broker.state is State.CLOSED)


TestCredit = CreditMachine.TestCase
TestDedup = DedupMachine.TestCase
TestSession = SessionMachine.TestCase
for case in (TestCredit, TestDedup, TestSession):
    case.settings = PLAY
