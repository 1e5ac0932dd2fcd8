"""What the bus costs: one way through broker and endpoints against bare ZeroMQ sockets.

Both move one payload of the 7B shape (8 x 4096 fp16, 64 KiB) from one process through a second to
a third, over ipc: ``bare`` is DEALER-ROUTER-DEALER with the same three frames and nothing else,
``bus`` is endpoint-broker-endpoint with sessions, checksums, routing and credit. Rounds of both
alternate in one run, so that the ratio stands on any machine.

    python bench/bus.py [--rounds 5] [--messages 400] [--out bench/results/bus-cpu.json]

Latency: one message at a time, from ``send`` in the sender's process to the callback in the
receiver's (one machine has one monotonic clock). Rate: as fast as credit allows (bare: as fast as
the sockets take them), from the first to the last arrival.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shlex
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import zmq

from agentwire.agent.process import SWITCH_S
from agentwire.agent.spec import BusAddress
from agentwire.bus.broker import Broker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import BrokerEvent
from agentwire.bus.security import ipc_endpoint, make_run_folder, new_token
from agentwire.scenario.summary import hardware
from agentwire.wire.credit import CreditGate, CreditWindow
from agentwire.wire.messages import (
    Credit,
    Define,
    Hello,
    Message,
    ModelIdentity,
    Payload,
    Role,
    Row,
    Soft,
    TaskSpec,
)

PAYLOAD = bytes(8 * 4096 * 2)
HEADER_BYTES = 120
PARTS = ("p50_us", "p99_us", "messages_per_s")
WARM_UP = 50
PAUSE = 0.002  # s between messages of the latency test: the pipe is empty again
WIRE = "a->b"
TASK = TaskSpec("bench", "prompt", "{text}")
WINDOW = (16, 32 * 1024 * 1024)


def stamp(kind: int) -> bytes:
    """16 bytes: which phase a message belongs to, and when it was sent."""
    return struct.pack("<qd", kind, time.monotonic())


class Arrivals:
    """The receiver's figures: latencies of phase 1, arrival times of phase 2."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._latencies: list[float] = []
        self._arrivals: list[float] = []
        self.done = threading.Event()

    def add(self, mark: bytes, now: float) -> None:
        kind, sent = struct.unpack("<qd", mark)
        if kind == 1:
            self._latencies.append((now - sent) * 1e6)
        elif kind == 2:
            self._arrivals.append(now)
            if len(self._arrivals) == self._messages:
                self.done.set()

    def figures(self) -> dict[str, float]:
        cuts = statistics.quantiles(self._latencies, n=100)
        span = self._arrivals[-1] - self._arrivals[0]
        rate = (len(self._arrivals) - 1) / span
        return {"p50_us": cuts[49], "p99_us": cuts[98], "messages_per_s": rate}


def run_phases(send: Callable[[bytes], None], messages: int) -> None:
    """What a sender does: warm up, one at a time, then all at once."""
    for _ in range(WARM_UP):
        send(stamp(0))
        time.sleep(PAUSE)
    for _ in range(messages):
        send(stamp(1))
        time.sleep(PAUSE)
    for _ in range(messages):
        send(stamp(2))


# -- bare -----------------------------------------------------------------------------------


def bare_router(endpoint: str, stop: threading.Event) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    while not stop.is_set():
        if router.poll(50):
            _, *frames = router.recv_multipart()
            router.send_multipart([b"receiver", *frames])
    router.close(0)
    context.term()


def bare_peer(role: str, endpoint: str, messages: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.ROUTING_ID, role.encode())
    dealer.connect(endpoint)
    say("ready")
    sys.stdin.readline()
    if role == "sender":
        padding = bytes(HEADER_BYTES - 16)

        def bare_send(mark: bytes) -> None:
            dealer.send_multipart([mark + padding, b"rows", PAYLOAD])

        run_phases(bare_send, messages)
        sys.stdin.readline()
    else:
        arrivals = Arrivals(messages)
        while not arrivals.done.is_set():
            header, _, _ = dealer.recv_multipart()
            arrivals.add(header[:16], time.monotonic())
        say(json.dumps(arrivals.figures()))
    dealer.close(0)
    context.term()


# -- bus ------------------------------------------------------------------------------------


def bus_peer(role: str, address: BusAddress, messages: int) -> None:
    sys.setswitchinterval(SWITCH_S)  # as agents do
    name = "a" if role == "sender" else "b"
    gate, may_send = CreditGate(), threading.Condition()
    window, arrivals = CreditWindow(*WINDOW), Arrivals(messages)

    def on_message(message: Message, now: float) -> None:
        if isinstance(message, Credit):
            with may_send:
                gate.add(message.wire, message.messages, message.bytes)
                may_send.notify()
        elif isinstance(message, Soft):
            size = len(message.payload.data)
            window.arrived(size)
            grant = window.consumed(size)
            if grant is not None:
                endpoint.send(Credit(WIRE, grant.messages, grant.bytes))
            arrivals.add(message.rows[0].trace_id, time.monotonic())

    def send(mark: bytes) -> None:
        with may_send:
            may_send.wait_for(lambda: gate.take(WIRE, len(PAYLOAD)))
        row = Row(os.urandom(16), ms_left=300_000, trace_id=mark)
        payload = Payload(PAYLOAD, n=1, soft_tokens=8, width=4096)
        endpoint.send(Soft(WIRE, TASK.task_id, "b" * 64, (row,), payload, origin="client"))

    model = ModelIdentity(name, "0" * 64, 4096, 32, 1.0, "bfloat16", "cpu")
    endpoint = Endpoint(address, Hello(name, Role.AGENT), on_message=on_message, on_lost=say)
    endpoint.start()
    endpoint.announce(Hello(name, Role.AGENT, model=model))
    if role == "receiver":
        grant = window.open()
        endpoint.send(Credit(WIRE, grant.messages, grant.bytes))
    say("ready")
    sys.stdin.readline()
    if role == "sender":
        run_phases(send, messages)
        sys.stdin.readline()
    else:
        arrivals.done.wait()
        say(json.dumps(arrivals.figures()))
    endpoint.close()


# -- the runner -----------------------------------------------------------------------------


def say(line: str) -> None:
    print(line, flush=True)


class Child:
    """One end, in a process of its own."""

    def __init__(self, kind: str, role: str, where: str, messages: int) -> None:
        command = [sys.executable, __file__, "--child", kind, role, where, str(messages)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.communicate("\n", timeout=10)


def measure(kind: str, wheres: dict[str, str], messages: int) -> dict[str, float]:
    children = {role: Child(kind, role, wheres[role], messages) for role in wheres}
    for child in children.values():
        assert child.line() == "ready"
    time.sleep(0.3)  # the last hellos cross
    for role in ("receiver", "sender"):
        children[role].go()
    figures: dict[str, float] = json.loads(children["receiver"].line())
    for child in children.values():
        child.end()
    return figures


def measure_bare(messages: int) -> dict[str, float]:
    folder = make_run_folder()
    endpoint, stop = ipc_endpoint(folder), threading.Event()
    router = threading.Thread(target=bare_router, args=(endpoint, stop))
    router.start()
    try:
        return measure("bare", {"sender": endpoint, "receiver": endpoint}, messages)
    finally:
        stop.set()
        router.join()
        (folder / "bus").unlink(missing_ok=True)
        folder.rmdir()


def measure_bus(messages: int) -> dict[str, float]:
    folder, run, token = make_run_folder(), os.urandom(16), new_token()
    ready: queue.SimpleQueue[BrokerEvent] = queue.SimpleQueue()
    broker = Broker(
        run=run, folder=folder, wires={WIRE: ("a", "b")}, token=token, on_event=ready.put
    )
    broker.start()
    for name in ("a", "b"):
        broker.expect(name, 1)
    address = BusAddress(endpoint=broker.endpoint, run=run.hex(), epoch=1, token=token)
    client = Endpoint(
        address, Hello("client", Role.CLIENT), on_message=lambda m, now: None, on_lost=say
    )
    client.start()
    client.send(Define(TASK))
    try:
        wheres = {role: address.model_dump_json() for role in ("sender", "receiver")}
        return measure("bus", wheres, messages)
    finally:
        client.close()
        broker.stop()
        folder.rmdir()


def compare(rounds: int, messages: int) -> dict[str, object]:
    """Medians over alternating rounds, and the bus as a ratio to bare sockets, as a record."""
    seen: dict[str, list[dict[str, float]]] = {"bare": [], "bus": []}
    for _ in range(rounds):
        seen["bare"].append(measure_bare(messages))
        seen["bus"].append(measure_bus(messages))
    medians = {
        kind: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for kind, results in seen.items()
    }
    figures = {f"{kind}_{key}": round(medians[kind][key], 1) for kind in medians for key in PARTS}
    for key in PARTS:
        figures[f"bus_to_bare_{key}"] = round(medians["bus"][key] / medians["bare"][key], 3)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/bus.py", *sys.argv[1:]]),
        "hardware": hardware().model_dump(),
        "versions": {
            "python": platform.python_version(),
            "pyzmq": zmq.__version__,
            "libzmq": zmq.zmq_version(),
        },
        "settings": {"payload_bytes": len(PAYLOAD), "rounds": rounds, "messages": messages},
        "figures": figures,
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, role, where, messages = sys.argv[2:6]
        if kind == "bare":
            bare_peer(role, where, int(messages))
        else:
            bus_peer(role, BusAddress.model_validate_json(where), int(messages))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = json.dumps(compare(args.rounds, args.messages), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
