"""The broker: one thread and one listening socket around ``core``.

Nothing that a peer sends ends the thread. An exception that does reach it is a bug: it is passed
on as ``BrokerFailed`` and raised by ``stop``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from agentwire.bus.core import BrokerCore, BusConfig
from agentwire.bus.events import BrokerEvent, BrokerFailed
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.instructions import Command
from agentwire.bus.recording import BusRecorder
from agentwire.bus.security import check_folder, ipc_endpoint
from agentwire.bus.transport import (
    Connector,
    Cutting,
    Listener,
    RemoteAccess,
    Transport,
    transport_for,
)
from agentwire.errors import LocalProtocolError
from agentwire.wire.session import Timing

COMMANDS = 1024  # that wait for the thread
RECEIVE_BUDGET = 256  # messages received before time limits are checked again
MAX_TICK_DELAY = 2.0  # s that a flood may delay the check of time limits
RETRY_FULL = 0.005  # s; a ROUTER cannot say when the queue of one peer has room again


class Broker:
    """The hub of a run's bus.

    Args:
        run: 16-byte id of the run; messages of any other run are refused.
        folder: private folder (0700) for the ipc socket; see ``security.make_run_folder``.
        wires: wire name -> (sender, receiver). Direct wires (``@agent``) exist by themselves.
        token: hex secret that a Hello must carry, unless its incarnation has one of its own.
        on_event: called in the broker's thread with each event; it must not block.
        agents: agents on no wire; only their direct wires reach them.
        reserved: names that only clients of this process may take (see ``in_process``).
        limits: how much is queued.
        timing: heartbeats; peers learn them from the Welcome.
        listen: where to listen instead of the folder's socket; plain tcp beyond this machine is
            refused.
        remote: where agents of other machines connect as well, with keys.
        transport: by default the one registered for the scheme of ``listen``.
        recorder: records all input, for a replay.

    Attributes:
        endpoint: where peers connect (``ipc://…``); known after ``start``.
        remote_endpoint: where agents of other machines connect; "" if they do not.
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
        reserved: Iterable[str] = (),
        limits: RoutingLimits | None = None,
        timing: Timing | None = None,
        listen: str | None = None,
        remote: RemoteAccess | None = None,
        transport: Transport | None = None,
        recorder: BusRecorder | None = None,
    ) -> None:
        self.endpoint = self.remote_endpoint = ""
        self._folder = folder
        self._listen = listen
        self._remote = remote
        self._transport = transport
        self._recorder = recorder
        self._on_event = on_event
        limits, timing = limits or RoutingLimits(), timing or Timing()
        config = BusConfig(run, wires, token, sorted(agents), limits, timing, sorted(reserved))
        now = time.monotonic()
        self._core = BrokerCore(
            config,
            on_event=on_event,
            clock=time.monotonic if recorder is None else recorder.clock,
            now=now,
            key_name=None if remote is None else lambda key: remote.allowed.name_of(key) or "",
        )
        if recorder is not None:
            recorder.started(config, now)
        self._commands: queue.Queue[Command] = queue.Queue(COMMANDS)
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._stop_at: float | None = None
        self._error: BaseException | None = None

    # -- for the owner ----------------------------------------------------------------------

    def start(self) -> None:
        """Binds the socket and starts the thread. Raises an InputError if the socket cannot be
        bound there, and a LocalProtocolError if it was started before."""
        if self._thread is not None:
            raise LocalProtocolError("The broker was started before.", hint="Make a new one.")
        if self._listen is None:
            check_folder(self._folder)
        endpoint = self._listen or ipc_endpoint(self._folder)
        transport = self._transport or transport_for(endpoint, remote=self._remote)
        self._listener = transport.listen(endpoint)
        self.endpoint = self._listener.endpoint
        self.remote_endpoint = getattr(self._listener, "remote_endpoint", "")
        self._core.write = self._listener.send
        if isinstance(self._listener, Cutting):
            self._core.release = self._listener.released
        self._thread = threading.Thread(
            target=self._run, args=(self._listener,), name="agentwire-broker", daemon=True
        )
        self._thread.start()

    @property
    def in_process(self) -> Connector | None:
        """Connects peers of this process; None: they connect to ``endpoint`` like all others."""
        listener = self._listener
        if not isinstance(listener, Connector) or listener.endpoint != self.endpoint:
            return None
        if self._stop_at is not None or self._error is not None:
            return None  # its socket is closing
        return listener

    def stop(self, timeout: float = 2.0) -> None:
        """Sends Goodbye to every peer, closes within ``timeout`` seconds, ends the thread. Safe to
        call twice. Raises the error that ended the thread before, if a bug did; once."""
        self._stop_at = time.monotonic() + timeout
        thread = self._thread
        if thread is not None and self._listener is not None:
            self._listener.wake()
            if thread is not threading.current_thread():
                thread.join(timeout + 1.0)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def expect(self, name: str, epoch: int, token: str = "") -> None:
        """From now on only this incarnation may connect as ``name``. Thread-safe.

        With a ``token`` of its own it is the only one that can: it need not know the run's.

        An agent (an end of a wire) is admitted only if it is expected. A client may have any name
        that is not an agent's, unless an incarnation of that name is expected.
        """
        self._command(Command("expect", name, epoch, token))

    def expect_remote(self, name: str) -> None:
        """Every new incarnation of this agent may connect from another machine with its key."""
        self._command(Command("expect_remote", name))

    def disconnect(self, name: str, epoch: int) -> None:
        """Drops the session of an incarnation whose process has ended. Thread-safe.

        Emits PeerLost if it was connected.
        """
        self._command(Command("disconnect", name, epoch))

    def _command(self, command: Command) -> None:
        if self._error is None:  # otherwise nothing takes them, and the queue would fill
            self._commands.put(command)
        if self._listener is not None:
            self._listener.wake()

    def metrics(self) -> Mapping[str, int]:
        """Counters since the start, and gauges. Thread-safe; a snapshot.

        Counters: ``forwarded``, ``results``, ``nacked.<code>`` (rows refused by agents),
        ``refused.<code>`` (by the broker), ``dropped.<why>``. Gauges: ``peers``, ``tasks``,
        ``queued_messages``, ``queued_bytes``.
        """
        return self._core.metrics()

    # -- the thread -------------------------------------------------------------------------

    def _run(self, listener: Listener) -> None:
        core, recorder = self._core, self._recorder
        try:
            while self._stop_at is None:
                listener.wait(self._pause())
                drained = self._receive(listener)
                self._take_commands()
                if core.blocked:
                    core.retry()
                now = time.monotonic()
                # Everything that has arrived is read before any peer counts as lost: one that
                # closed may have sent its last results and Goodbye.
                if drained or now - core.ticked > MAX_TICK_DELAY:
                    while core.broken:
                        peer, reason = core.broken.popitem()
                        if recorder is not None:
                            recorder.broke(peer, reason)
                        core.disconnect(peer, reason)
                    if recorder is not None and now >= core.due_at():
                        recorder.ticked(now)
                    core.tick(now)
            if recorder is not None:
                recorder.ended(core.metrics())
            core.say_goodbye("the run has ended", time.monotonic())
            while core.blocked and time.monotonic() < self._stop_at:
                listener.wait(RETRY_FULL)
                core.retry()
        except BaseException as error:
            self._error = error
            self._on_event(BrokerFailed(error))
        finally:
            left = (self._stop_at or 0.0) - time.monotonic()
            listener.close(max(0.0, left))

    def _pause(self) -> float:
        """Seconds until something is due."""
        if self._core.broken:
            return 0.0
        if self._core.blocked:
            return RETRY_FULL
        return max(0.0, self._core.due_at() - time.monotonic())

    def _take_commands(self) -> None:
        while not self._commands.empty():  # only this thread takes any out
            command = self._commands.get_nowait()
            if self._recorder is not None:
                self._recorder.commanded(command)
            self._core.command(command)

    def _receive(self, listener: Listener) -> bool:
        """Handles what has arrived; False if there may be more."""
        for _ in range(RECEIVE_BUDGET):
            arrived = listener.receive()
            if arrived is None:
                return True
            peer, frames = arrived
            new = peer not in self._core.open
            if new:
                # A command (expect) given before this peer connected must take effect before its
                # Hello is judged.
                self._take_commands()
            if self._recorder is not None:
                self._recorder.received(peer, frames, listener.last_key)
            self._core.receive(peer, frames, listener.last_key)
            if new and peer in self._core.open and isinstance(listener, Cutting):
                listener.admitted(peer)
        return False
