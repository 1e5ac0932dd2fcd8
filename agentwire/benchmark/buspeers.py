"""One end of the bus benchmark, a process: ``python -m agentwire.benchmark.buspeers``.

The first line of stdin is a ``PeerJob`` as JSON. The process prints ``ready``, starts at the next
line of stdin, and the receiver prints its figures as JSON. It exits at the end of stdin.

Every message carries 16 bytes with its phase and the time when it was sent; both processes run on
one machine and so share a monotonic clock.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agentwire.agent.process import SWITCH_S
from agentwire.benchmark.bare import BareSocket
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.transport import PeerKeys
from agentwire.bus.zmq import ZmqTransport
from agentwire.spec.agent import BusAddress
from agentwire.wire.credit import CreditGate, CreditWindow
from agentwire.wire.messages import (
    Credit,
    Hello,
    Message,
    ModelIdentity,
    Payload,
    Role,
    Row,
    Soft,
    TaskSpec,
)

SENDER, RECEIVER = "a", "b"
WIRE = f"{SENDER}->{RECEIVER}"
TASK = TaskSpec("bench", "prompt", "{text}")
SOFT_TOKENS, WIDTH = 8, 4096
PAYLOAD_BYTES = SOFT_TOKENS * WIDTH * 2
WINDOW = (16, 32 * 1024 * 1024)
WARM_UP = 50
PAUSE_S = 0.002  # between messages of the latency phase, so that the pipe is empty again
MARK = struct.Struct("<qd")
WARM, LATENCY, RATE = range(3)

Figures = dict[str, float]


class PeerJob(BaseModel):
    """What one end does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["sender", "receiver"]
    messages: int
    endpoint: str = ""  # of the bare router, if ``address`` is None
    server_key: str | None = None  # CURVE key of the bare router (Z85)
    address: BusAddress | None = None
    keys: tuple[str, str, str] | None = None  # public and secret, and the bus's public (Z85)


class Arrivals:
    """The receiver's clock. ``done`` is set when every message of the last phase has arrived."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._latencies_us: list[float] = []
        self._arrivals: list[float] = []
        self.done = threading.Event()

    def add(self, mark: bytes) -> None:
        now = time.monotonic()
        phase, sent = MARK.unpack(mark)
        if phase == LATENCY:
            self._latencies_us.append((now - sent) * 1e6)
        elif phase == RATE:
            self._arrivals.append(now)
            if len(self._arrivals) == self._messages:
                self.done.set()

    def figures(self) -> Figures:
        """p50 and p99 in microseconds one way, and messages a second."""
        cuts = statistics.quantiles(self._latencies_us, n=100)
        span = self._arrivals[-1] - self._arrivals[0]
        rate = (len(self._arrivals) - 1) / span
        return {"p50_us": cuts[49], "p99_us": cuts[98], "messages_per_s": rate}


def mark(phase: int) -> bytes:
    return MARK.pack(phase, time.monotonic())


def run_phases(send: Callable[[bytes], None], messages: int) -> None:
    """Warm up, send one message at a time, then all at once."""
    for phase, count in ((WARM, WARM_UP), (LATENCY, messages)):
        for _ in range(count):
            send(mark(phase))
            time.sleep(PAUSE_S)
    for _ in range(messages):
        send(mark(RATE))


def bus_peer(job: PeerJob, address: BusAddress) -> Figures | None:
    """One end on the bus: the receiver's figures, or None for the sender."""
    sys.setswitchinterval(SWITCH_S)  # as agents do
    name = SENDER if job.role == "sender" else RECEIVER
    gate, may_send = CreditGate(), threading.Condition()
    window, arrivals = CreditWindow(*WINDOW), Arrivals(job.messages)
    payload = Payload(bytes(PAYLOAD_BYTES), n=1, soft_tokens=SOFT_TOKENS, width=WIDTH)

    def on_message(message: Message, now: float) -> None:
        if isinstance(message, Credit):
            with may_send:
                gate.add(message.wire, message.messages, message.bytes)
                may_send.notify()
        elif isinstance(message, Soft):
            arrivals.add(message.rows[0].trace_id)
            size = len(message.payload.data)
            window.arrived(size)
            grant = window.consumed(size)
            if grant is not None:
                endpoint.send(Credit(WIRE, grant.messages, grant.bytes))

    def send(mark: bytes) -> None:
        with may_send:
            may_send.wait_for(lambda: gate.take(WIRE, PAYLOAD_BYTES))
        row = Row(os.urandom(16), ms_left=300_000, trace_id=mark)
        endpoint.send(Soft(WIRE, TASK.task_id, "b" * 64, (row,), payload, origin="client"))

    model = ModelIdentity(name, "0" * 64, WIDTH, 32, 1.0, "bfloat16", "cpu")
    endpoint = Endpoint(
        address,
        Hello(name, Role.AGENT),
        on_message=on_message,
        on_lost=_lost,
        transport=ZmqTransport(keys=PeerKeys(*job.keys) if job.keys else None),
    )
    endpoint.start()
    endpoint.announce(Hello(name, Role.AGENT, model=model))
    if job.role == "receiver":
        grant = window.open()
        endpoint.send(Credit(WIRE, grant.messages, grant.bytes))
    wait_for_runner()
    try:
        if job.role == "sender":
            run_phases(send, job.messages)
            wait_for_runner()  # until the receiver has everything
            return None
        arrivals.done.wait()
        return arrivals.figures()
    finally:
        endpoint.close()


def bare_peer(job: PeerJob) -> Figures | None:
    """One end on bare sockets: the receiver's figures, or None for the sender."""
    with BareSocket(job.role, job.endpoint, job.server_key) as socket:
        wait_for_runner()
        if job.role == "sender":
            payload = bytes(PAYLOAD_BYTES)
            run_phases(lambda mark: socket.send(mark, payload), job.messages)
            wait_for_runner()  # until the receiver has everything
            return None
        arrivals = Arrivals(job.messages)
        while not arrivals.done.is_set():
            arrivals.add(socket.receive())
        return arrivals.figures()


def _lost(reason: str) -> None:
    print(f"connection to the bus lost: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def wait_for_runner() -> None:
    """Reports that everything so far is done, and waits for the next line; exits without one."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner to decide
    job = PeerJob.model_validate_json(sys.stdin.readline())
    figures = bare_peer(job) if job.address is None else bus_peer(job, job.address)
    if figures is not None:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
