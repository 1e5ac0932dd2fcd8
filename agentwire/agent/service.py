"""The main loop of an agent process: connect, load the model, serve requests, shut down.

The main thread computes. While it is idle it also reads the socket, because being woken by another
thread for each message would cost more than reading it. While it computes a batch, the endpoint's
IO thread reads the socket. Either way messages go through an inbox.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, TypeAlias

from agentwire.agent.cpu_sharing import CpuSharing, open_cpu_sharing
from agentwire.agent.launching.failure import ExitCode, encode_error
from agentwire.agent.warmup import EVERY_S, Warmup
from agentwire.agent.worker import Worker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.transport import Transport
from agentwire.bus.zmq import ipc_path
from agentwire.download import OnProgress
from agentwire.errors import BridgeError, BusClosed, InputError, LocalProtocolError, ScenarioError
from agentwire.model.backend import Backend, Pipelined, SharesCpu
from agentwire.spec.agent import AgentBootstrap, AgentSpec, BusAddress, warms_up
from agentwire.spec.backends import BACKENDS
from agentwire.telemetry.counts import BatchSizes, write_counts
from agentwire.wire.codec import encode
from agentwire.wire.messages import BridgeIdentity, Envelope, Hello, Message, Offer, Role
from agentwire.wire.messages import Progress as ProgressMessage

log = logging.getLogger(__name__)

MAX_INBOX: Final = 8192
"""Far more messages than the agent grants credit for, so a full inbox is a protocol error."""
DRAIN_S: Final = 5.0
PROGRESS_EVERY_S: Final = 0.1
LONGEST_WAIT_S: Final = 60.0
BUSY_POLL_S: Final = 0.0002
"""Busy-poll within this window of a batch's expected completion."""
WARMUP_MARGIN_S: Final = 0.0006
"""No warm-up replay starts this shortly before the expected completion, nor after it."""


class Shutdown:
    """SIGTERM was received."""


@dataclass(frozen=True, slots=True)
class BusLost:
    """The connection to the bus is lost."""

    reason: str


InboxItem: TypeAlias = Message | Shutdown | BusLost


class Inbox:
    """Messages and events with their arrival; the main thread takes them out of ``items``.

    ``put`` is thread-safe, and safe in a signal handler: a deque appends without a lock.
    """

    def __init__(self) -> None:
        self.items: deque[tuple[InboxItem, float]] = deque()

    def put(self, item: InboxItem, arrival: float) -> None:
        if len(self.items) < MAX_INBOX:
            self.items.append((item, arrival))
        elif len(self.items) == MAX_INBOX:
            self.items.append((BusLost("the bus sends more than was granted"), arrival))


def serve(bootstrap: AgentBootstrap) -> ExitCode:
    """Runs the agent until SIGTERM or until the connection to the bus is lost."""
    inbox = Inbox()
    endpoint = connect(bootstrap.agent.name, bootstrap.bus, inbox)
    service = Service(bootstrap.agent, endpoint, inbox, cpu_sharing_of(bootstrap))
    try:
        return service.run()
    except InputError as error:
        log.error("%s", error)
        endpoint.close(encode_error(error), timeout=2.0)
        return ExitCode.INPUT
    except BusClosed as error:
        log.error("connection to the bus lost: %s", error)
        return ExitCode.BUS_LOST
    finally:
        endpoint.close("the agent exits", timeout=1.0)
        if bootstrap.telemetry is not None:
            write_counts(Path(bootstrap.telemetry), service.batch_sizes)


class Service:
    """One incarnation of an agent.

    Args:
        stop_requested: set by SIGTERM, in this incarnation or an earlier one.
    """

    def __init__(
        self,
        spec: AgentSpec,
        endpoint: Endpoint,
        inbox: Inbox,
        cpu_sharing: CpuSharing | None = None,
        stop_requested: threading.Event | None = None,
    ) -> None:
        self._spec = spec
        self._endpoint = endpoint
        self._inbox = inbox
        self._cpu_sharing = cpu_sharing
        self._stop_requested = stop_requested or threading.Event()
        self._drain_until = math.inf
        self._lost: BusLost | None = None
        self._warmup: Warmup | None = None

    @property
    def batch_sizes(self) -> BatchSizes:
        """Number of batches by kind and rows; empty before the model is loaded."""
        worker: Worker | None = getattr(self, "_worker", None)
        return {} if worker is None else worker.batch_sizes

    @property
    def lost(self) -> str:
        """Why the connection to the bus was lost; "" if it was not."""
        return "" if self._lost is None else self._lost.reason

    def run(self, loaded: Loaded | None = None) -> ExitCode:
        """Loads the model (unless ``loaded``), reports ready, and serves requests.

        Raises:
            InputError: the model or a bridge cannot be loaded.
            BusClosed: the connection to the bus is lost.
        """
        backend, bridges, readers = loaded or load(self._spec, self._report(), self._cpu_sharing)
        # Until here SIGTERM ends the process at once, because there is nothing to finish.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if self._stop_requested.is_set():
            self._inbox.put(Shutdown(), time.monotonic())
        self._endpoint.announce(Hello(self._spec.name, Role.AGENT, model=backend.identity))
        self._worker = Worker(
            self._spec,
            backend,
            bridges,
            self._endpoint.send,
            time.monotonic,
            poll=self._poll,
            on_busy=self._busy,
            on_long_batch=self._endpoint.hand_over,
            readers=readers,
        )
        self._worker.start()
        if warms_up(self._spec):
            agreements = self._worker.agreements
            self._warmup = Warmup(self._spec, backend, bridges, agreements, time.monotonic)
        log.info("ready: %s", backend.identity)
        try:
            return self._loop()
        finally:
            if isinstance(backend, Pipelined):
                log.info("batches: %s", backend.summary())

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._stop_requested.set()
        self._inbox.put(Shutdown(), time.monotonic())
        self._endpoint.wake()

    def _loop(self) -> ExitCode:
        worker = self._worker
        while True:
            now = time.monotonic()
            if self._lost is not None:
                log.error("connection to the bus lost: %s", self._lost.reason)
                return ExitCode.BUS_LOST
            if now >= self._drain_until or (worker.closing and worker.idle):
                return ExitCode.DONE
            wait = min(worker.next_event(), self._drain_until) - now
            if not self._inbox.items and wait > 0:
                self._wait(min(wait, LONGEST_WAIT_S), worker.is_done if worker.running else None)
                self._handle_inbox()
            else:
                self._poll()
            worker.run_once()

    def _wait(self, seconds: float, done: Callable[[], bool] | None) -> None:
        """Reads the socket until a message arrives or the batch is ``done``; warms up meanwhile."""
        now = time.monotonic()
        if done is not None:
            left = self._worker.expected_end() - now
            if abs(left) <= BUSY_POLL_S:
                self._busy_poll(done, now + left + BUSY_POLL_S)
                return
            if left > 0:
                seconds = min(seconds, left - BUSY_POLL_S)
        warmup = self._warmup
        if warmup is not None:
            pause = warmup.wait_s(now)
            if pause <= 0.0:
                if done is None or left > WARMUP_MARGIN_S:
                    warmup.replay(now)
                pause = EVERY_S
            if pause < seconds:  # shorter than the transport can wait, so it has to poll
                seconds, done = pause, done or (lambda: False)
        self._endpoint.poll(seconds, done)

    def _busy_poll(self, done: Callable[[], bool], end: float) -> None:
        """Spins until the batch is done: a sleep would take longer."""
        while not done() and time.monotonic() < end:
            pass
        self._endpoint.poll(0.0, done)

    def _poll(self) -> None:
        """Handles what has arrived by now."""
        self._endpoint.poll(0.0, lambda: True)
        self._handle_inbox()

    def _handle_inbox(self) -> None:
        while self._inbox.items:
            message, arrival = self._inbox.items.popleft()
            if isinstance(message, BusLost):
                self._lost = message
            elif isinstance(message, Shutdown):
                self._worker.closing = True
                self._drain_until = min(self._drain_until, arrival + DRAIN_S)
            else:
                self._handle(message, arrival)

    def _handle(self, message: Message, arrival: float) -> None:
        """Handles a message; the agent counts as busy meanwhile, as a task may take long."""
        since = self._endpoint.busy_since
        if since is None:
            self._endpoint.busy_since = time.monotonic()
        self._worker.handle(message, arrival)
        if self._warmup is not None:
            self._warmup.observe(message, arrival)
        self._endpoint.busy_since = since

    def _busy(self, since: float | None) -> None:
        self._endpoint.busy_since = since
        if self._cpu_sharing is not None and since is None:
            self._cpu_sharing.end()
        elif self._cpu_sharing is not None:
            self._cpu_sharing.begin()

    def _report(self) -> OnProgress:
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


Loaded: TypeAlias = tuple[Backend, dict[str, BridgeIdentity | None], dict[str, BridgeIdentity]]


def load(spec: AgentSpec, progress: OnProgress, cpu_sharing: CpuSharing | None = None) -> Loaded:
    """Loads the agent's model, its bridges by wire, and its halves of reader bridges by
    fingerprint. Raises an InputError if one cannot be loaded."""
    if cpu_sharing is not None:
        cpu_sharing.begin()  # loading uses the threads too
    backend = load_backend(spec, progress)
    bridges = _add_bridges(spec, backend)
    halves = [_add_reader(spec, backend, Path(folder)) for folder in spec.readers]
    if cpu_sharing is not None and isinstance(backend, SharesCpu):
        backend.set_thread_source(cpu_sharing.threads)
    if spec.task is not None:
        try:
            backend.prepare(spec.task)
        except ScenarioError as error:
            # A sender may relay texts for a task that it cannot answer. A request gets a Nack.
            log.info("task not prepared: %s", error)
    # A collection that visits every object of a model library would delay a batch by 0.1 s.
    gc.collect()
    gc.freeze()
    if cpu_sharing is not None:
        cpu_sharing.end()
    return backend, bridges, {half.fingerprint: half for half in halves}


def connect(
    name: str, address: BusAddress, inbox: Inbox, transport: Transport | None = None
) -> Endpoint:
    """A started endpoint of this agent that puts messages into ``inbox``."""
    endpoint = Endpoint(
        address,
        Hello(name, Role.AGENT),
        on_message=inbox.put,
        on_lost=lambda reason: inbox.put(BusLost(reason), time.monotonic()),
        transport=transport,
    )
    endpoint.start()
    return endpoint


def load_backend(spec: AgentSpec, progress: OnProgress) -> Backend:
    """Loads the agent's model with its backend; an ``InputError`` if that is impossible."""
    backend: Backend = BACKENDS.get(spec.backend).load(spec, progress)
    return backend


def _add_bridges(spec: AgentSpec, backend: Backend) -> dict[str, BridgeIdentity | None]:
    """Loads the bridges: wire -> bridge, or None for a wire without one."""
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


def _add_reader(spec: AgentSpec, backend: Backend, folder: Path) -> BridgeIdentity:
    if not hasattr(backend, "add_reader"):  # of another package
        raise BridgeError(
            f"{spec.name}: the backend {spec.backend} cannot load the receiver half of {folder}.",
            hint="Set `backend: transformers` for the receiver.",
        )
    return backend.add_reader(folder)


def _check_offer(offer: Offer) -> None:
    """Refuses a card that does not fit a message while the user still waits for the start."""
    try:
        encode(offer, Envelope(bytes(16), 0, 0))
    except LocalProtocolError as error:
        raise BridgeError(
            f"The card of the bridge {offer.bridge.name} does not fit a message: {error.message}",
            hint="Train it again with `agentwire train`, or restore the folder.",
        ) from None
