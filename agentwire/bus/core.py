"""The broker without thread and socket: sessions, routing and what waits to be written.

``broker`` drives it with a real transport and ``replay`` with a recording.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from agentwire.bus.events import BrokerEvent
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.instructions import Admit, Command, Disconnect, Emit, Instruction, Reject, Send
from agentwire.bus.routing import Router
from agentwire.bus.transport import IN_PROCESS, Frame, Frames, PeerId, Sent
from agentwire.errors import LocalProtocolError
from agentwire.wire.events import (
    DuplicateDropped,
    Event,
    HelloReceived,
    MessageReceived,
    Outgoing,
)
from agentwire.wire.messages import Goodbye, Ping
from agentwire.wire.session import Session, Side, State, Timing

log = logging.getLogger(__name__)

BROKER_EPOCH = 1  # a broker lives as long as its run
OUTBOX_MESSAGES = 4096  # for a peer that does not read; then it is disconnected
OUTBOX_BYTES = 64 * 1024 * 1024  # the same
ALL_OUTBOXES_BYTES = 256 * 1024 * 1024  # over all peers; then the slowest is disconnected
UNREAD_BYTES = 16 * 1024 * 1024  # handed to the transport, which bounds messages but not bytes
PROBE_BYTES = 4 * 1024 * 1024  # after so many a Ping asks how far the peer has read
SWEEP_EVERY = 0.5  # s
_TICK_AT = attrgetter("tick_at")


@dataclass(frozen=True, slots=True)
class BusConfig:
    """What defines a bus; see ``Broker`` for each value."""

    run: bytes
    wires: Mapping[str, tuple[str, str]]
    token: str
    agents: list[str]
    limits: RoutingLimits
    timing: Timing
    reserved: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Connection:
    """One connection.

    Attributes:
        tick_at: when its session has to be ticked.
        key: public key of its peer; "" if the transport uses none.
        outbox: messages that the transport did not take yet.
        waiting: their bytes.
        unread: bytes handed to the transport that the peer may not have read.
        probe: number of the Ping whose Pong shows that it has read ``probed`` of them; 0: none.
    """

    session: Session
    tick_at: float
    key: str = ""
    outbox: deque[list[Frame]] = field(default_factory=deque)
    waiting: int = 0
    unread: int = 0
    probe: int = 0
    probed: int = 0


class BrokerCore:
    """Belongs to one thread; ``metrics`` may be called from others.

    Args:
        on_event: called with each event for the owner.
        clock: monotonic seconds.
        now: the time at which it starts.
        key_name: the name that a public key is registered for; "" if it is not. None: keys are not
            checked.

    Attributes:
        write: hands one message to the transport.
        release: called when a session ends; True: cut its connection.
        ticked: when ``tick`` was last called.
        open: connected peers.
        blocked: peers whose messages wait because they do not read; ``retry`` writes them.
        broken: connections that broke during a write, and why. They stay open for reading until
            the broker has read all that has arrived and calls ``disconnect``: a peer that closed
            may have sent its last results before.
    """

    def __init__(
        self,
        config: BusConfig,
        *,
        on_event: Callable[[BrokerEvent], None],
        clock: Callable[[], float],
        now: float,
        key_name: Callable[[str], str] | None = None,
    ) -> None:
        self.write: Callable[[PeerId, Frames], Sent] = lambda peer, frames: Sent.GONE
        self.release: Callable[[PeerId, bool], None] = lambda peer, cut: None
        self._waiting = 0  # bytes in all outboxes
        self.ticked = self._swept = now
        self._config = config
        self._on_event = on_event
        self._clock = clock
        self._key_name = key_name
        self._router = Router(
            wires=config.wires,
            token=config.token,
            agents=config.agents,
            limits=config.limits,
            reserved=config.reserved,
        )
        self._lock = threading.Lock()  # around the router: metrics() reads it from other threads
        self.open: dict[PeerId, Connection] = {}
        self.blocked: set[PeerId] = set()
        self.broken: dict[PeerId, str] = {}

    def metrics(self) -> Mapping[str, int]:
        with self._lock:
            return {**self._router.counters, **self._router.gauges()}

    # -- input ------------------------------------------------------------------------------

    def receive(self, peer: PeerId, frames: Frames, key: str) -> None:
        """Handles one message; ``key`` is its sender's, as in ``Listener.last_key``."""
        now = self._clock()
        connection = self.open.get(peer)
        if connection is not None:
            events = connection.session.receive(frames, now)
            if len(events) == 1 and isinstance(events[0], MessageReceived):  # the usual case
                self._route(peer, events[0])
            else:
                self._handle(peer, connection, events)
            return
        session = Session(
            Side.BROKER,
            run=self._config.run,
            epoch=BROKER_EPOCH,
            now=now,
            timing=self._config.timing,
            keyed=key not in ("", IN_PROCESS),
        )
        connection = Connection(session, now, key)
        events = session.receive(frames, now)
        # A session is kept from an accepted Hello on, so strangers cost no memory.
        if any(isinstance(event, HelloReceived) for event in events):
            self.open[peer] = connection
        else:
            self._count("dropped.stranger")
        self._handle(peer, connection, events)

    def command(self, command: Command) -> None:
        """Carries out what the owner asks for."""
        self._decide(lambda now: self._router.command(command))

    def disconnect(self, peer: PeerId, reason: str) -> None:
        """Ends a session from this side."""
        self._decide(lambda now: self._router.disconnect(peer, reason))

    def due_at(self) -> float:
        """When ``tick`` has something to do."""
        ticks = min(map(_TICK_AT, self.open.values()), default=float("inf"))
        return min(ticks, self._swept + SWEEP_EVERY)

    def tick(self, now: float) -> None:
        """Heartbeats, lost peers, revoked keys and expired messages."""
        self.ticked = now
        for peer, connection in list(self.open.items()):
            if now >= connection.tick_at and self.open.get(peer) is connection:
                again, events = connection.session.tick(now)
                connection.tick_at = float("inf") if again is None else again
                self._handle(peer, connection, events)
        if now >= self._swept + SWEEP_EVERY:
            self._swept = now
            self._disconnect_revoked()
            self._decide(self._router.sweep)

    # -- decisions --------------------------------------------------------------------------

    def _handle(self, peer: PeerId, connection: Connection, events: list[Event]) -> None:
        if connection.probe and connection.session.pongs >= connection.probe:
            connection.unread, connection.probe = connection.unread - connection.probed, 0
            self._probe(peer, connection)
        # The session's own frames are numbered already, so they are written first.
        for event in events:
            if isinstance(event, Outgoing):
                self._write(peer, connection, event.frames)
        for event in events:
            if isinstance(event, DuplicateDropped):
                self._count("dropped.duplicate")
            elif isinstance(event, HelloReceived):
                self._route(peer, event, connection)
            elif not isinstance(event, Outgoing):
                self._route(peer, event)
            if peer not in self.open:
                return  # disconnected: the rest is void

    def _route(self, peer: PeerId, event: Event, new: Connection | None = None) -> None:
        now = self._clock()
        key_name = self._name_of(new) if new is not None else None
        in_process = new is not None and new.key == IN_PROCESS
        with self._lock:
            instructions = self._router.handle(peer, event, now, key_name, in_process)
        for instruction in instructions:
            self._carry_out(instruction, now)

    def _decide(self, decide: Callable[[float], list[Instruction]]) -> None:
        now = self._clock()
        with self._lock:
            instructions = decide(now)
        for instruction in instructions:
            self._carry_out(instruction, now)

    def _carry_out(self, instruction: Instruction, now: float) -> None:
        if isinstance(instruction, Emit):
            self._on_event(instruction.event)
            return
        connection = self.open.get(instruction.peer)
        if connection is None:
            return  # it broke while these instructions were carried out
        match instruction:
            case Send(peer, message, sealed):
                try:
                    frames = connection.session.send(message, now, sealed)
                except LocalProtocolError:
                    # It was received within its limits and cannot be sent within them. Its
                    # deadline ends the request; the counter shows it.
                    self._count("dropped.unsendable")
                    return
                self._write(peer, connection, frames)
            case Disconnect(peer):
                self._drop(peer)
            case Admit(peer):
                self._write(peer, connection, connection.session.welcome(now))
                connection.tick_at = now
            case Reject(peer, code, reason):
                self._write(peer, connection, connection.session.reject(code, reason, now))
                self._drop(peer)

    def _name_of(self, connection: Connection) -> str | None:
        if self._key_name is None or connection.key in ("", IN_PROCESS):
            return None
        return self._key_name(connection.key)

    def _disconnect_revoked(self) -> None:
        for peer, connection in list(self.open.items()):
            if self._name_of(connection) == "":
                self._count("dropped.revoked")
                self.disconnect(peer, "its key was revoked")

    def _count(self, what: str) -> None:
        with self._lock:
            self._router.counters[what] += 1

    # -- output -----------------------------------------------------------------------------

    def retry(self) -> None:
        """Writes what waits, as far as the peers read."""
        for peer in list(self.blocked):
            connection = self.open[peer]
            outbox = connection.outbox
            while outbox and connection.unread < UNREAD_BYTES:
                sent = self.write(peer, outbox[0])
                if sent is Sent.GONE:
                    self._break(peer, "the connection was closed")
                if sent is not Sent.TAKEN:
                    break
                size = sum(map(len, outbox.popleft()))
                connection.unread += size
                connection.waiting -= size
                self._waiting -= size
            if not outbox:
                self.blocked.discard(peer)
            self._probe(peer, connection)

    def say_goodbye(self, reason: str, now: float) -> None:
        """Sends Goodbye in every open session."""
        for peer, connection in self.open.items():
            if connection.session.state is State.OPEN:
                self._write(peer, connection, connection.session.send(Goodbye(reason), now))

    def _write(self, peer: PeerId, connection: Connection, frames: list[Frame]) -> None:
        """Writes now, or later if the peer does not read fast enough."""
        if peer in self.broken:
            return
        if not connection.outbox and connection.unread < UNREAD_BYTES:
            sent = self.write(peer, frames)
            if sent is Sent.TAKEN:
                connection.unread += sum(map(len, frames))
                if connection.unread >= PROBE_BYTES and not connection.probe:
                    self._probe(peer, connection)
                return
            if sent is Sent.GONE:
                self._break(peer, "the connection was closed")
                return
        if peer not in self.open:
            return
        size = sum(map(len, frames))
        full = connection.outbox and connection.waiting + size > OUTBOX_BYTES
        if full or len(connection.outbox) >= OUTBOX_MESSAGES:
            self._cut(peer, connection)
            return
        connection.outbox.append(frames)
        connection.waiting += size
        self._waiting += size
        self.blocked.add(peer)
        if self._waiting > ALL_OUTBOXES_BYTES:
            slowest = max(self.blocked, key=lambda blocked: self.open[blocked].waiting)
            self._cut(slowest, self.open[slowest])

    def _probe(self, peer: PeerId, connection: Connection) -> None:
        """Sends a Ping if enough is unread: its Pong shows that the peer has read all before it."""
        session = connection.session
        if connection.probe or connection.unread < PROBE_BYTES or session.state is not State.OPEN:
            return
        frames = session.send(Ping(), self.ticked)
        connection.probe, connection.probed = session.pings, connection.unread
        self._write(peer, connection, frames)

    def _cut(self, peer: PeerId, connection: Connection) -> None:
        """Disconnects a peer that does not read."""
        messages, size = len(connection.outbox), connection.waiting + connection.unread
        reason = f"it did not read {messages} messages and {size / 2**20:.0f} MiB"
        hello = connection.session.hello
        log.warning("%s is disconnected: %s", hello.name if hello else "a peer", reason)
        self._break(peer, reason)
        self.release(peer, True)

    def _break(self, peer: PeerId, reason: str) -> None:
        if peer in self.open:
            self.broken[peer] = reason
            self._clear(self.open[peer])
            self.blocked.discard(peer)

    def _clear(self, connection: Connection) -> None:
        self._waiting -= connection.waiting
        connection.outbox.clear()
        connection.waiting = 0

    def _drop(self, peer: PeerId) -> None:
        connection = self.open.pop(peer, None)
        if connection is not None:
            self._clear(connection)
            self.release(peer, False)
        self.broken.pop(peer, None)
        self.blocked.discard(peer)
