"""What an agent process does between birth and exit: connect, load, work, leave.

The main thread computes, and listens to the bus itself while it has nothing else to do: to be woken
by another thread for each message would cost more than reading it. The endpoint's IO thread listens
while a batch is computed in this thread. What arrives goes through an inbox either way.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final, TypeAlias

from agentwire.agent.cpu_sharing import CpuSharing, open_cpu_sharing
from agentwire.agent.launching.failure import ExitCode, describe
from agentwire.agent.warmup import EVERY_S, Warmup
from agentwire.agent.worker import Worker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.transport import Transport
from agentwire.bus.zmq import ipc_path
from agentwire.errors import BridgeError, BusClosed, InputError, LocalProtocolError
from agentwire.model.backend import Backend, Pipelined, ReportProgress, SharesCpu
from agentwire.spec.agent import AgentBootstrap, AgentSpec, BusAddress, rehearses
from agentwire.spec.backends import BACKENDS
from agentwire.telemetry.counts import BatchSizes, write_counts
from agentwire.wire.codec import encode
from agentwire.wire.messages import BridgeIdentity, Envelope, Hello, Message, Offer, Role
from agentwire.wire.messages import Progress as ProgressMessage

log = logging.getLogger(__name__)

INBOX: Final = 8192
"""More than credit lets in by far: an inbox that is full means that the bus broke its promise."""
DRAIN_S: Final = 5.0
PROGRESS_EVERY_S: Final = 0.1
LONGEST_WAIT_S: Final = 60.0
SOON_S: Final = 0.0002
"""So long before and after its expected end, a batch is looked at without naps."""
PLAY_S: Final = 0.0006
"""No rehearsal begins so shortly before, nor while a batch is late."""


class Leave:
    """Told to leave (SIGTERM)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The bus is lost."""

    reason: str


Arrival: TypeAlias = Message | Leave | Lost


class Inbox:
    """What arrives, for the main thread. ``put`` is safe in a signal handler (SimpleQueue is)."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Arrival, float]] = SimpleQueue()

    def put(self, message: Arrival, arrival: float) -> None:
        if self._queue.qsize() < INBOX:
            self._queue.put((message, arrival))
        elif self._queue.qsize() == INBOX:
            self._queue.put((Lost("the bus sends more than was granted"), arrival))

    def get(self) -> tuple[Arrival, float] | None:
        """The next arrival; None if there is none now."""
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def __bool__(self) -> bool:
        return not self._queue.empty()


def serve(bootstrap: AgentBootstrap) -> ExitCode:
    """Runs the agent until it is told to leave or the bus is lost."""
    inbox = Inbox()
    endpoint = connect(bootstrap.agent.name, bootstrap.bus, inbox)
    service = Service(bootstrap.agent, endpoint, inbox, cpu_sharing_of(bootstrap))
    try:
        return service.run()
    except InputError as error:
        log.error("%s", error)
        endpoint.close(describe(error), timeout=2.0)
        return ExitCode.INPUT
    except BusClosed as error:
        log.error("the bus is lost: %s", error)
        return ExitCode.BUS_LOST
    finally:
        endpoint.close("the agent ends", timeout=1.0)
        if bootstrap.telemetry is not None:
            write_counts(Path(bootstrap.telemetry), service.batch_sizes)


class Service:
    """One incarnation of an agent.

    Args:
        told: set once the process was told to leave, during this incarnation or before it.
    """

    def __init__(
        self,
        spec: AgentSpec,
        endpoint: Endpoint,
        inbox: Inbox,
        cpu_sharing: CpuSharing | None = None,
        told: threading.Event | None = None,
    ) -> None:
        self._spec = spec
        self._endpoint = endpoint
        self._inbox = inbox
        self._cpu_sharing = cpu_sharing
        self._told = told or threading.Event()
        self._leave_at = math.inf
        self._lost: Lost | None = None
        self._rehearsal: Warmup | None = None

    @property
    def batch_sizes(self) -> BatchSizes:
        """Batches so far: kind -> rows -> how many."""
        worker: Worker | None = getattr(self, "_worker", None)  # none before the model is loaded
        return {} if worker is None else worker.batch_sizes

    @property
    def lost(self) -> str:
        """Why the bus was lost; "" if it was not."""
        return "" if self._lost is None else self._lost.reason

    def run(self, loaded: Loaded | None = None) -> ExitCode:
        """Loads the model (unless it is there), says that it is ready, and works.

        Raises:
            InputError: the model or a bridge cannot be loaded.
            BusClosed: the bus is lost.
        """
        backend, bridges = loaded or load(self._spec, self._report(), self._cpu_sharing)
        # Only now: until here there is nothing to finish, and SIGTERM may end the process at once.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if self._told.is_set():
            self._inbox.put(Leave(), time.monotonic())
        self._endpoint.announce(Hello(self._spec.name, Role.AGENT, model=backend.identity))
        self._worker = Worker(
            self._spec,
            backend,
            bridges,
            self._endpoint.send,
            time.monotonic,
            poll=self._poll,
            on_busy=self._busy,
            on_leave=self._endpoint.leave,
        )
        self._worker.start()
        if rehearses(self._spec):
            agreements = self._worker.agreements
            self._rehearsal = Warmup(self._spec, backend, bridges, agreements, time.monotonic)
        log.info("ready: %s", backend.identity)
        try:
            return self._work()
        finally:
            if isinstance(backend, Pipelined):
                log.info("batches: %s", backend.summary())

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._told.set()
        self._inbox.put(Leave(), time.monotonic())
        self._endpoint.nudge()

    def _work(self) -> ExitCode:
        worker = self._worker
        while True:
            now = time.monotonic()
            if self._lost is not None:
                log.error("the bus is lost: %s", self._lost.reason)
                return ExitCode.BUS_LOST
            if now >= self._leave_at or (worker.closing and worker.idle):
                return ExitCode.DONE
            wait = min(worker.next_event(), self._leave_at) - now
            if not self._inbox and wait > 0:
                self._wait(min(wait, LONGEST_WAIT_S), worker.is_done if worker.computing else None)
                self._take_all()
            else:
                self._poll()
            worker.run_once()

    def _wait(self, seconds: float, done: Callable[[], bool] | None) -> None:
        """Listens until something has arrived, is ``done``, or so long; rehearses meanwhile."""
        now = time.monotonic()
        if done is not None:
            left = self._worker.expected_end() - now
            if abs(left) <= SOON_S:
                self._look(done, now + left + SOON_S)
                return
            if left > 0:
                seconds = min(seconds, left - SOON_S)
        rehearsal = self._rehearsal
        if rehearsal is not None:
            pause = rehearsal.wait_s(now)
            if pause <= 0.0:
                if done is None or left > PLAY_S:
                    rehearsal.step(now)
                pause = EVERY_S
            if pause < seconds:  # which is shorter than the transport can wait
                seconds, done = pause, done or _never
        self._endpoint.attend(seconds, done)

    def _look(self, done: Callable[[], bool], end: float) -> None:
        """Waits for what should be done now: a nap would take longer."""
        while not done() and time.monotonic() < end:
            pass
        self._endpoint.attend(0.0, done)

    def _poll(self) -> None:
        """Takes in what has arrived by now."""
        self._endpoint.attend(0.0, lambda: True)
        self._take_all()

    def _take_all(self) -> None:
        while self._take(self._inbox.get()):
            pass

    def _take(self, arrived: tuple[Arrival, float] | None) -> bool:
        if arrived is None:
            return False
        message, arrival = arrived
        if isinstance(message, Lost):
            self._lost = message
        elif isinstance(message, Leave):
            self._worker.closing = True
            self._leave_at = min(self._leave_at, arrival + DRAIN_S)
        else:
            self._worker.handle(message, arrival)
            if self._rehearsal is not None:
                self._rehearsal.note(message, arrival)
        return True

    def _busy(self, since: float | None) -> None:
        self._endpoint.busy_since = since
        if self._cpu_sharing is not None and since is None:
            self._cpu_sharing.end()
        elif self._cpu_sharing is not None:
            self._cpu_sharing.begin()

    def _report(self) -> ReportProgress:
        last = ("", -math.inf)

        def report(stage: str, fraction: float) -> None:
            nonlocal last
            now = time.monotonic()
            if stage != last[0] or fraction >= 1.0 or now - last[1] >= PROGRESS_EVERY_S:
                last = (stage, now)
                self._endpoint.send(ProgressMessage(stage, min(1.0, max(0.0, fraction))))

        return report


def cpu_sharing_of(bootstrap: AgentBootstrap) -> CpuSharing | None:
    """The agent's CPU sharing; its locks lie beside the bus's socket."""
    socket = ipc_path(bootstrap.bus.endpoint)
    if socket is None:
        return None
    name = bootstrap.agent.cpu_share_of or bootstrap.agent.name
    return open_cpu_sharing(socket.parent, name, bootstrap.agent.cpu_shares)


Loaded: TypeAlias = tuple[Backend, dict[str, BridgeIdentity | None]]


def load(
    spec: AgentSpec, progress: ReportProgress, cpu_sharing: CpuSharing | None = None
) -> Loaded:
    """The agent's model, and its bridges by wire.

    Raises:
        InputError: they cannot be had.
    """
    if cpu_sharing is not None:
        cpu_sharing.begin()  # it needs its threads for loading, too
    backend = load_backend(spec, progress)
    bridges = add_bridges(spec, backend)
    if cpu_sharing is not None and isinstance(backend, SharesCpu):
        backend.set_thread_source(cpu_sharing.threads)
    prepare(spec, backend)
    # A collection that walks through a whole model library would stop a batch for 0.1 s.
    gc.collect()
    gc.freeze()
    if cpu_sharing is not None:
        cpu_sharing.end()
    return backend, bridges


def connect(
    name: str, address: BusAddress, inbox: Inbox, transport: Transport | None = None
) -> Endpoint:
    """An endpoint that has said Hello as this agent, and whose messages go into ``inbox``."""
    endpoint = Endpoint(
        address,
        Hello(name, Role.AGENT),
        on_message=inbox.put,
        on_lost=lambda reason: inbox.put(Lost(reason), time.monotonic()),
        transport=transport,
    )
    endpoint.start()
    return endpoint


def load_backend(spec: AgentSpec, progress: ReportProgress) -> Backend:
    """The agent's model, loaded by its backend.

    Raises:
        InputError: it cannot be loaded.
    """
    backend: Backend = BACKENDS.get(spec.backend).load(spec, progress)
    return backend


def _never() -> bool:
    return False


def prepare(spec: AgentSpec, backend: Backend) -> None:
    """Prepares the task that the agent will be asked first, while its user still waits."""
    if spec.task is None:
        return
    try:
        backend.prepare(spec.task)
    except InputError as error:
        # A sender may relay for a task that it could not answer itself: told when asked.
        log.info("not prepared: %s", error)


def add_bridges(spec: AgentSpec, backend: Backend) -> dict[str, BridgeIdentity | None]:
    """Wire -> loaded bridge (None where there is none).

    Raises:
        BridgeError: one is corrupt, or made for something else.
    """
    bridges: dict[str, BridgeIdentity | None] = {}
    loaded: dict[str, BridgeIdentity] = {}  # a bridge may serve several wires
    for out in spec.bridges:
        bridges[out.wire] = None
        if out.folder is not None:
            if out.folder not in loaded:
                loaded[out.folder] = backend.add_bridge(Path(out.folder))
            bridges[out.wire] = loaded[out.folder]
            _check_offer(Offer(out.wire, loaded[out.folder]))
    return bridges


def _check_offer(offer: Offer) -> None:
    """Refuses a card that says what the wire cannot carry, while there is a user to tell."""
    try:
        encode(offer, Envelope(bytes(16), 0, 0))
    except LocalProtocolError as error:
        raise BridgeError(
            f"The card of the bridge {offer.bridge.name} cannot be offered: {error.message}",
            hint="Train it again with `agentwire train`, or restore the folder.",
        ) from None
