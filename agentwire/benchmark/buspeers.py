"""One end of the bus benchmark, a process: ``python -m agentwire.benchmark.buspeers``.

Its first line of stdin is a JSON object (``PeerJob``); it prints ``ready``, begins at the next line
of stdin, and the receiver prints its figures as JSON. The end of stdin is the end of the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agentwire.agent.process import SWITCH_S
from agentwire.benchmark.busload import Arrivals, run_phases
from agentwire.bus.access import PeerKeys
from agentwire.bus.endpoint import Endpoint
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


class PeerJob(BaseModel):
    """What a peer has to do.

    Attributes:
        endpoint: of the bare router, where ``address`` is None.
        server_key: CURVE key of the bare router (Z85).
        keys: what to show to a bus that asks for keys: public, secret and the bus's (Z85).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["sender", "receiver"]
    messages: int
    endpoint: str = ""
    server_key: str | None = None
    address: BusAddress | None = None
    keys: tuple[str, str, str] | None = None


def bus_peer(
    role: str, address: BusAddress, messages: int, keys: PeerKeys | None = None
) -> dict[str, float] | None:
    """One end on the bus. The receiver's figures; None at the sender."""
    sys.setswitchinterval(SWITCH_S)  # as agents do
    name = SENDER if role == "sender" else RECEIVER
    gate, may_send = CreditGate(), threading.Condition()
    window, arrivals = CreditWindow(*WINDOW), Arrivals(messages)
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
        transport=ZmqTransport(keys=keys),
    )
    endpoint.start()
    endpoint.announce(Hello(name, Role.AGENT, model=model))
    if role == "receiver":
        grant = window.open()
        endpoint.send(Credit(WIRE, grant.messages, grant.bytes))
    wait_go()
    try:
        if role == "sender":
            run_phases(send, messages)
            wait_go()  # until the receiver has everything
            return None
        arrivals.done.wait()
        return arrivals.figures()
    finally:
        endpoint.close()


def _lost(reason: str) -> None:
    print(f"the bus is lost: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def wait_go() -> None:
    """Says that everything so far is done, and waits for the runner; ends with it."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner to decide
    job = PeerJob.model_validate_json(sys.stdin.readline())
    if job.address is not None:
        keys = PeerKeys(*job.keys) if job.keys else None
        figures = bus_peer(job.role, job.address, job.messages, keys)
    else:
        from agentwire.benchmark.bare import bare_peer

        payload = bytes(PAYLOAD_BYTES)
        key = job.server_key.encode() if job.server_key else None
        figures = bare_peer(job.role, job.endpoint, job.messages, payload, wait_go, key)
    if figures is not None:
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
