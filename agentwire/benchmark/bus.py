"""Cost of the bus: one way through broker and endpoints, beside bare ZeroMQ sockets.

Both move one payload of the 7B shape (8 x 4096 fp16, 64 KiB) over ipc from one process through a
second to a third. ``bare`` is DEALER-ROUTER-DEALER with frames of the same sizes, ``bus`` is
endpoint-broker-endpoint with sessions, checksums, routing and credit; ``_curve`` adds encryption.
Rounds alternate, and a ratio is the median over rounds of the ratio within a round.

Latency: one message at a time, from ``send`` in the sender's process to the callback in the
receiver's. Rate: as fast as credit (bare: as the sockets) allows, from first to last arrival.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from agentwire.benchmark.bare import bare_router
from agentwire.benchmark.buspeers import (
    PAYLOAD_BYTES,
    RECEIVER,
    SENDER,
    TASK,
    WIRE,
    Figures,
    PeerJob,
)
from agentwire.benchmark.machine import conditions, load_average
from agentwire.benchmark.plan import turns
from agentwire.benchmark.record import BusRecord
from agentwire.bus.broker import Broker
from agentwire.bus.curve import new_pair
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import BrokerEvent
from agentwire.bus.security import ipc_endpoint, make_run_folder, new_token
from agentwire.bus.transport import RemoteAccess
from agentwire.bus.zmq import libzmq_version
from agentwire.errors import AgentwireError
from agentwire.evaluation.summary import hardware, versions
from agentwire.spec.agent import BusAddress
from agentwire.wire.messages import Define, Hello, Role
from agentwire.wire.session import UNKNOWN_RUN

PARTS: Final = ("p50_us", "p99_us", "messages_per_s")
CURVE_SOCKET: Final = "keys"
SETTLE_S: Final = 0.3  # until the last hellos have crossed

Rounds = dict[str, list[Figures]]


class PeerProcess:
    """One end, in a process of its own. A context manager."""

    def __init__(self, job: PeerJob) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentwire.benchmark.buspeers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.write(job.model_dump_json())

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=2.0)  # the end of stdin ends the process
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def write(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read(self) -> str:
        """The next line; raises AgentwireError if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise AgentwireError("A process of the bus benchmark ended early.")
        return line


def exchange(sender_job: PeerJob, receiver_job: PeerJob) -> Figures:
    """Run a sender and a receiver; the receiver's figures."""
    with PeerProcess(sender_job) as sender, PeerProcess(receiver_job) as receiver:
        for peer in (sender, receiver):
            peer.read()  # ready
        time.sleep(SETTLE_S)
        for peer in (receiver, sender):
            peer.write()  # go
        figures: Figures = json.loads(receiver.read())
        sender.read()  # sent everything
        return figures


def measure_bare(messages: int, *, curve: bool = False) -> Figures:
    """One round through bare sockets."""
    keys = new_pair() if curve else None
    folder = make_run_folder()
    endpoint = ipc_endpoint(folder)
    job = PeerJob(
        role="sender",
        messages=messages,
        endpoint=endpoint,
        server_key=keys[0] if keys else None,
    )
    try:
        with bare_router(endpoint, keys):
            return exchange(job, job.model_copy(update={"role": "receiver"}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_bus(messages: int, *, curve: bool = False) -> Figures:
    """One round through endpoints and broker; with ``curve`` both ends join by key."""
    folder, run, token = make_run_folder(), os.urandom(16), new_token()
    events: queue.SimpleQueue[BrokerEvent] = queue.SimpleQueue()
    keyring = _Keyring(folder) if curve else None
    broker = Broker(
        run=run,
        folder=folder,
        wires={WIRE: (SENDER, RECEIVER)},
        token=token,
        on_event=events.put,
        remote=keyring.access if keyring else None,
    )
    broker.start()
    address = BusAddress(endpoint=broker.endpoint, run=run.hex(), epoch=1, token=token)
    peers_address = address
    if keyring is not None:
        # Peers that join by key know neither run nor token.
        peers_address = BusAddress(
            endpoint=broker.remote_endpoint, run=UNKNOWN_RUN.hex(), epoch=1, token=""
        )
    for name in (SENDER, RECEIVER):
        broker.expect_remote(name) if keyring else broker.expect(name, 1)
    hello = Hello("client", Role.CLIENT)
    client = Endpoint(address, hello, on_message=lambda m, now: None, on_lost=lambda reason: None)
    client.start()
    client.send(Define(TASK))

    def job(role: Literal["sender", "receiver"], name: str) -> PeerJob:
        keys = keyring.keys[name] if keyring else None
        return PeerJob(role=role, messages=messages, address=peers_address, keys=keys)

    try:
        return exchange(job("sender", SENDER), job("receiver", RECEIVER))
    finally:
        client.close()
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)


class _Keyring:
    """Keys of a bus and of both ends, on an ipc socket of its own."""

    def __init__(self, folder: Path) -> None:
        public, secret = new_pair()
        pairs = {name: new_pair() for name in (SENDER, RECEIVER)}
        self._names = {pair[0]: name for name, pair in pairs.items()}
        self.access = RemoteAccess(ipc_endpoint(folder, CURVE_SOCKET), secret, self)
        self.keys = {name: (*pair, public) for name, pair in pairs.items()}

    def name_of(self, key: str) -> str | None:
        return self._names.get(key)


MEASURES: Mapping[str, Callable[[int], Figures]] = {
    "bare": measure_bare,
    "bus": measure_bus,
    "bare_curve": partial(measure_bare, curve=True),
    "bus_curve": partial(measure_bus, curve=True),
}


def compare(
    rounds: int,
    messages: int,
    *,
    command: str,
    tell: Callable[[int, str, Figures], None],
    keep: Callable[[BusRecord], None],
    measures: Mapping[str, Callable[[int], Figures]] = MEASURES,
) -> BusRecord:
    """Alternating rounds of all kinds; the first kind changes every round.

    ``tell`` gets (round, kind, figures), ``keep`` the record after each complete round. Ctrl-C ends
    the benchmark; the incomplete round does not count.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    known_versions, machine, load = bus_versions(), hardware(), load_average()
    seen: Rounds = {kind: [] for kind in measures}

    def record(*, interrupted: bool) -> BusRecord:
        return BusRecord(
            started=started,
            seconds=round(time.monotonic() - begin, 3),
            interrupted=interrupted,
            command=command,
            labels=conditions(load),
            settings={
                "load_average": load,
                "transport": "ipc",
                "payload_bytes": PAYLOAD_BYTES,
                "rounds": len(seen["bus"]),
                "messages": messages,
            },
            figures=figures_of(seen),
            rounds=seen,
            versions=known_versions,
            hardware=machine,
        )

    try:
        found: dict[str, Figures] = {}
        for number, kind in turns([list(measures)], rounds):
            found[kind] = measures[kind](messages)
            tell(number, kind, found[kind])
            if len(found) == len(measures):
                for name, figures in found.items():
                    seen[name].append(figures)
                found = {}
                keep(record(interrupted=number + 1 < rounds))
    except KeyboardInterrupt:
        return record(interrupted=True)
    return record(interrupted=False)


def figures_of(seen: Rounds) -> Figures:
    """Medians over rounds, and ratios of each bus to its bare sockets."""
    figures: Figures = {}
    for kind, rounds in seen.items():
        for part in PARTS if rounds else ():
            figures[f"{kind}_{part}"] = round(statistics.median(r[part] for r in rounds), 1)
    for kind, rounds in seen.items():
        bare = seen.get(kind.replace("bus", "bare"), [])
        if kind.startswith("bus") and rounds:
            for part in PARTS:
                ratios = [a[part] / b[part] for a, b in zip(rounds, bare, strict=True)]
                name = f"{kind}_to_bare_{part.removesuffix('_us')}"
                figures[name] = round(statistics.median(ratios), 3)
    return figures


def bus_versions() -> dict[str, str]:
    wanted = ("python", "agentwire", "pyzmq", "msgpack")
    found = {name: version for name, version in versions().items() if name in wanted}
    found["libzmq"] = libzmq_version()
    try:
        found["isal"] = metadata.version("isal")
    except metadata.PackageNotFoundError:
        found["isal"] = "none: CRC-32 by zlib"
    return found
