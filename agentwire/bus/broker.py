"""The broker: one thread, one ROUTER socket, a session for each peer, around ``routing``.

The thread never ends because of what a peer sent: sessions and routing answer that. Any exception
that does reach it is a bug; it is kept, told by ``BrokerFailed`` and raised by ``stop``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from agentwire.bus.access import RemoteAccess
from agentwire.bus.connections import RETRY_FULL, Connection, Connections
from agentwire.bus.events import BrokerEvent, BrokerFailed
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.recording import BusRecorder
from agentwire.bus.routing import Router
from agentwire.bus.security import check_folder, ipc_endpoint
from agentwire.bus.stimuli import (
    Admit,
    Arrived,
    Departed,
    Dismiss,
    Emit,
    Expect,
    Forget,
    Garbled,
    Instruction,
    Invite,
    PeerId,
    Reject,
    Reported,
    Said,
    Send,
    Stimulus,
    Tick,
)
from agentwire.bus.transport import Connects, Frame, Frames, Inside, Listener, Transport
from agentwire.errors import LocalProtocolError
from agentwire.wire.events import (
    Announced,
    Busy,
    Closed,
    Duplicate,
    Event,
    Gap,
    Greeted,
    Lost,
    Outgoing,
    Received,
    Refused,
)
from agentwire.wire.session import Session
from agentwire.wire.states import Side, Timing

BROKER_EPOCH = 1  # a broker lives as long as its run
COMMANDS = 1024  # expect and forget that wait for the thread
RECEIVE_BUDGET = 256  # messages taken in before time limits are looked at again
MAX_TICK_DELAY = 2.0  # s that a flood may keep the broker from looking at time limits
SWEEP_EVERY = 0.5  # s


class Broker:
    """The hub of a run's bus.

    Args:
        run: 16-byte id of the run; messages of any other run are refused.
        folder: private folder (0700) for the ipc socket; see ``security.make_run_folder``.
        wires: wire name -> (sender, receiver). Direct wires (``@agent``) exist by themselves.
        token: hex secret that every Hello must carry.
        on_event: called in the broker's thread with each event; it must not block.
        agents: agents on no wire, which only their direct wires reach.
        limits: how much is queued.
        timing: heartbeats; peers learn them from the Welcome.
        listen: where to listen instead of the folder's socket; plain tcp beyond this machine is
            refused.
        remote: where agents of other machines join besides, with keys.
        transport: for tests; ZeroMQ by default.
        recorder: told everything that comes in, to be replayed.

    Attributes:
        endpoint: where peers connect (``ipc://…``); known after ``start``.
        remote_endpoint: where agents of other machines do; "" if they do not.
    """

    def __init__(
        self,
        *,
        run: bytes,
        folder: Path,
        wires: Mapping[str, tuple[str, str]],
        token: str,
        on_event: Callable[[BrokerEvent], None],
        agents: Iterable[str] = (),
        limits: RoutingLimits | None = None,
        timing: Timing | None = None,
        listen: str | None = None,
        remote: RemoteAccess | None = None,
        transport: Transport | None = None,
        recorder: BusRecorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._clock = time.monotonic if recorder is None else recorder.clock
        self.endpoint = self.remote_endpoint = ""
        self._remote = remote
        self._run_id = run
        self._folder = folder
        self._listen = listen
        self._on_event = on_event
        self._timing = timing or Timing()
        self._transport = transport
        self._wires, self._agents = dict(wires), sorted(agents)
        self._limits = limits or RoutingLimits()
        self._router = Router(wires=wires, token=token, agents=self._agents, limits=self._limits)
        self._lock = threading.Lock()  # around the router: metrics() reads it from other threads
        self._commands: queue.Queue[Stimulus] = queue.Queue(COMMANDS)
        self._connections = Connections()
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self._error: BaseException | None = None
        self._ticked = self._swept = 0.0

    # -- for the owner ----------------------------------------------------------------------

    def start(self) -> None:
        """Binds the socket and starts the thread.

        Raises:
            InputError: the socket cannot be bound there.
            LocalProtocolError: it was started before.
        """
        if self._thread is not None:
            raise LocalProtocolError("The broker was started before.", hint="Make a new one.")
        if self._listen is None:
            check_folder(self._folder)
        self._listener = self._open(self._listen or ipc_endpoint(self._folder))
        self.endpoint = self._listener.endpoint
        self.remote_endpoint = getattr(self._listener, "remote_endpoint", "")
        self._thread = threading.Thread(target=self._run, name="agentwire-broker", daemon=True)
        self._thread.start()

    def _open(self, endpoint: str) -> Listener:
        if self._transport is None:
            from agentwire.bus.zmq import ZmqTransport  # tests without sockets need no pyzmq

            self._transport = ZmqTransport(remote=self._remote)
        return self._transport.listen(endpoint)

    @property
    def inside(self) -> Connects | None:
        """Where peers of this process connect; None: as all others do, at ``endpoint``."""
        listener = self._listener
        connect = getattr(listener, "connect_inside", None)
        if connect is None or listener is None or listener.endpoint != self.endpoint:
            return None
        if self._stop_at is not None or self._error is not None:
            return None  # its socket closes
        return Inside(connect)

    def stop(self, timeout: float = 2.0) -> None:
        """Says Goodbye to every peer, closes within ``timeout`` seconds, ends the thread.

        Safe to call twice.

        Raises:
            BaseException: the error that ended the thread before, if a bug did; once.
        """
        self._stop_at = time.monotonic() + timeout
        thread = self._thread
        if thread is not None and self._listener is not None:
            self._listener.wake()
            if thread is not threading.current_thread():
                thread.join(timeout + 1.0)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def expect(self, name: str, epoch: int) -> None:
        """From now on only this incarnation is let in as ``name``. Thread-safe.

        An agent (an end of a wire) that nobody expects is never let in. A client is, with any
        name that is not an agent's, unless an incarnation of that name is expected.
        """
        self._command(Expect(name, epoch))

    def invite(self, name: str) -> None:
        """Every new incarnation of this agent is let in from another machine, by its key."""
        self._command(Invite(name))

    def forget(self, name: str, epoch: int) -> None:
        """The process of this incarnation is dead: drops its session now. Thread-safe.

        Emits PeerLost if the incarnation was connected.
        """
        self._command(Forget(name, epoch))

    def _command(self, command: Stimulus) -> None:
        self._commands.put(command)
        if self._listener is not None:
            self._listener.wake()

    def metrics(self) -> Mapping[str, int]:
        """Counters since the start, and gauges. Thread-safe; a snapshot.

        Counters: ``forwarded``, ``results``, ``nacked.<code>`` (rows refused by agents),
        ``refused.<code>`` (by the broker), ``dropped.<why>``. Gauges: ``peers``, ``tasks``,
        ``queued_messages``, ``queued_bytes``.
        """
        with self._lock:
            return {**self._router.counters, **self._router.gauges()}

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        listener = self._listener
        if listener is None:
            return
        self._ticked = self._swept = time.monotonic()
        if self._recorder is not None:
            self._recorder.opened(
                self._run_id, self._wires, self._agents, self._limits, self._timing, self._swept
            )
        try:
            while self._stop_at is None:
                listener.wait(self._pause())
                drained = self._receive(listener)
                self._take_commands()
                self._connections.retry(listener)
                now = time.monotonic()
                # Everything that has arrived is read before anybody is called lost: a peer that
                # closed may have said its last results and Goodbye.
                if drained or now - self._ticked > MAX_TICK_DELAY:
                    self._depart_broken()
                    self._tick(now)
            if self._recorder is not None:
                self._recorder.ended(self.metrics())
            self._connections.say_goodbye(listener, "the run has ended", self._stop_at)
        except BaseException as error:
            self._error = error
            self._on_event(BrokerFailed(error))
        finally:
            left = (self._stop_at or 0.0) - time.monotonic()
            listener.close(max(0.0, left))

    def _pause(self) -> float:
        """Seconds until something is due."""
        if self._connections.any_broken():
            return 0.0
        if self._connections.waiting():
            return RETRY_FULL
        due = min(self._connections.next_tick(), self._swept + SWEEP_EVERY)
        return max(0.0, due - time.monotonic())

    def _take_commands(self) -> None:
        while not self._commands.empty():  # only this thread takes any out
            command = self._commands.get_nowait()
            if self._recorder is not None:
                self._recorder.commanded(command)
            self._route(command)

    def _receive(self, listener: Listener) -> bool:
        """Takes in what has arrived; False if there may be more."""
        for _ in range(RECEIVE_BUDGET):
            arrived = listener.receive()
            if arrived is None:
                return True
            self._take(*arrived)
        return False

    def _take(self, peer: PeerId, frames: Frames) -> None:
        connection = self._connections.get(peer)
        if connection is None:
            # What the owner said before this peer connected (expect) must be known before its
            # Hello is judged, also if it was said since this thread last looked.
            self._take_commands()
        if self._recorder is not None:
            self._recorder.came(peer, frames, self._key_of_last())
        now = self._clock()
        if connection is not None:
            self._heed(peer, connection, connection.session.receive(frames, now))
            return
        key = self._key_of_last()
        # A session is kept from an accepted Hello on: strangers cost no memory.
        session = Session(
            Side.BROKER,
            run=self._run_id,
            epoch=BROKER_EPOCH,
            now=now,
            timing=self._timing,
            keyed=bool(key),
        )
        connection = Connection(session, now, key)
        events = session.receive(frames, now)
        if any(isinstance(event, Greeted) for event in events):
            self._connections.add(peer, connection)
        else:
            self._count("dropped.stranger")
        self._heed(peer, connection, events)

    def _key_of_last(self) -> str:
        return self._listener.last_key if self._listener is not None else ""

    def _tick(self, now: float) -> None:
        self._ticked = now
        due = min(self._swept + SWEEP_EVERY, self._connections.next_tick())
        if self._recorder is not None and now >= due:
            self._recorder.ticked(now)
        for peer, connection in self._connections.all():
            if now >= connection.tick_at and self._connections.get(peer) is connection:
                again, events = connection.session.tick(now)
                connection.tick_at = float("inf") if again is None else again
                self._heed(peer, connection, events)
        if now >= self._swept + SWEEP_EVERY:
            self._swept = now
            self._depart_revoked()
            self._route(Tick())

    def _heed(self, peer: PeerId, connection: Connection, events: list[Event]) -> None:
        """Acts on what a session said."""
        if len(events) == 1 and isinstance(events[0], Received):  # as nearly always
            self._route(Said(peer, events[0].message, events[0].sealed))
            return
        # First what it has numbered already: routing may make it number more.
        for event in events:
            if isinstance(event, Outgoing):
                self._write(peer, connection, event.frames)
        for event in events:
            match event:
                case Received(message, _, sealed):
                    self._route(Said(peer, message, sealed))
                case Busy(busy_ms):
                    self._route(Reported(peer, busy_ms))
                case Greeted(hello, epoch):
                    self._route(Arrived(peer, epoch, hello, self._name_of(connection)))
                case Announced(hello):
                    self._route(Said(peer, hello))
                case Refused(code, reason, wire, rows, origin):
                    self._route(Garbled(peer, code, reason, wire, rows, origin))
                case Closed(reason):
                    self._route(Departed(peer, reason, goodbye=True))
                case Lost(reason):
                    self._route(Departed(peer, reason, silent=True))
                case Gap(expected, received):
                    # Work, grants or answers are missing, and nobody can say which.
                    self._route(Departed(peer, f"{received - expected} messages were lost"))
                case Duplicate():
                    self._count("dropped.duplicate")
                case _:
                    pass
            if self._connections.get(peer) is None:
                return  # the rest was said by somebody who is gone

    # -- routing ----------------------------------------------------------------------------

    def _name_of(self, connection: Connection) -> str | None:
        """The name that a connection's key stands for; None: none is asked for."""
        if self._remote is None or not connection.key:
            return None
        return self._remote.guests.name_of(connection.key) or ""

    def _depart_revoked(self) -> None:
        for peer, connection in self._connections.all():
            if self._name_of(connection) == "":
                self._count("dropped.revoked")
                self._route(Departed(peer, "its key was revoked"))

    def _depart_broken(self) -> None:
        for peer, reason in self._connections.take_broken():
            if self._recorder is not None:
                self._recorder.broke(peer, reason)
            self._route(Departed(peer, reason))

    def _route(self, stimulus: Stimulus) -> None:
        now = self._clock()
        with self._lock:
            instructions = self._router.handle(stimulus, now)
        for instruction in instructions:
            self._do(instruction, now)

    def _do(self, instruction: Instruction, now: float) -> None:
        if isinstance(instruction, Send):  # as nearly always
            self._send(instruction, now)
            return
        match instruction:
            case Emit(event):
                self._on_event(event)
                return
            case Dismiss(peer):
                self._connections.drop(peer)
                return
        connection = self._connections.get(instruction.peer)
        if connection is None:
            return  # it broke while this stimulus was carried out
        match instruction:
            case Admit(peer):
                self._write(peer, connection, connection.session.welcome(now))
                connection.tick_at = now
            case Reject(peer, code, reason):
                self._write(peer, connection, connection.session.reject(code, reason, now))
                self._connections.drop(peer)

    def _send(self, send: Send, now: float) -> None:
        connection = self._connections.get(send.peer)
        if connection is None:
            return  # it broke while this stimulus was carried out
        try:
            frames = connection.session.send(send.message, now, send.sealed)
        except LocalProtocolError:
            # It came in within its limits and does not leave within them: its time limit
            # ends the request, and the counter tells.
            self._count("dropped.unsendable")
            return
        self._write(send.peer, connection, frames)

    def _write(self, peer: PeerId, connection: Connection, frames: list[Frame]) -> None:
        if self._listener is not None:
            self._connections.write(self._listener, peer, connection, frames)

    def _count(self, what: str) -> None:
        with self._lock:
            self._router.counters[what] += 1
