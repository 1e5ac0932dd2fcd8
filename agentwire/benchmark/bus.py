"""What the bus costs: one way through broker and endpoints against bare ZeroMQ sockets.

Both move one payload of the 7B shape (8 x 4096 fp16, 64 KiB) from one process through a second to
a third, over ipc: ``bare`` is DEALER-ROUTER-DEALER with frames of the same sizes and nothing else,
``bus`` is endpoint-broker-endpoint with sessions, checksums, routing and credit. Rounds of both
alternate in one run, and a ratio is the median over rounds of the ratio within a round, so that it
stands on any machine. ``_curve``: the same with encryption, and keys on both ends.

Latency: one message at a time, from ``send`` in the sender's process to the callback in the
receiver's. Rate: as fast as credit allows (bare: as fast as the sockets take them), from the first
to the last arrival.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from agentwire.benchmark.buspeers import PAYLOAD_BYTES, RECEIVER, SENDER, TASK, WIRE, PeerJob
from agentwire.benchmark.machine import conditions, load_average
from agentwire.benchmark.record import BusRecord
from agentwire.bus.access import RemoteAccess
from agentwire.bus.broker import Broker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import BrokerEvent
from agentwire.bus.security import ipc_endpoint, make_run_folder, new_token
from agentwire.bus.zmq import libzmq_version
from agentwire.errors import AgentwireError
from agentwire.evaluation.summary import hardware, versions
from agentwire.spec.agent import BusAddress
from agentwire.wire.messages import Define, Hello, Role
from agentwire.wire.session import UNKNOWN_RUN

PARTS: Final = ("p50_us", "p99_us", "messages_per_s")
KEYED: Final = "keys"
"""Name of the ipc socket that asks for keys."""
SETTLE_S: Final = 0.3  # the last hellos cross

Figures = dict[str, float]
Rounds = dict[str, list[Figures]]


class Peer:
    """One end, in a process of its own."""

    def __init__(self, job: PeerJob) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentwire.benchmark.buspeers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write(job.model_dump_json())

    def line(self) -> str:
        """What it says next.

        Raises:
            AgentwireError: it ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise AgentwireError("A peer of the bus benchmark has ended early.")
        return line

    def go(self) -> None:
        """Lets it go on."""
        self._write("")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def exchange(jobs: Mapping[str, PeerJob]) -> Figures:
    """Runs a sender and a receiver; the receiver's figures."""
    peers = {role: Peer(job) for role, job in jobs.items()}
    try:
        for peer in peers.values():
            peer.line()  # ready
        time.sleep(SETTLE_S)
        for role in ("receiver", "sender"):
            peers[role].go()
        figures: Figures = json.loads(peers["receiver"].line())
        peers["sender"].line()
        peers["sender"].go()
        return figures
    finally:
        for peer in peers.values():
            peer.end()


def measure_bare(messages: int, *, curve: bool = False) -> Figures:
    """One round through bare sockets."""
    from agentwire.benchmark.bare import BareRouter, curve_keys

    keys = curve_keys() if curve else None
    key = keys[0].decode() if keys else None
    with _ipc() as endpoint, BareRouter(endpoint, keys):
        return exchange(
            {
                "sender": PeerJob(
                    role="sender", messages=messages, endpoint=endpoint, server_key=key
                ),
                "receiver": PeerJob(
                    role="receiver", messages=messages, endpoint=endpoint, server_key=key
                ),
            }
        )


def measure_bus(messages: int, *, curve: bool = False) -> Figures:
    """One round through endpoints and broker; with ``curve`` both ends join by key."""
    folder, run, token = make_run_folder(), os.urandom(16), new_token()
    ready: queue.SimpleQueue[BrokerEvent] = queue.SimpleQueue()
    doors = _Doors(folder) if curve else None
    broker = Broker(
        run=run,
        folder=folder,
        wires={WIRE: (SENDER, RECEIVER)},
        token=token,
        on_event=ready.put,
        remote=doors.access if doors else None,
    )
    broker.start()
    address = BusAddress(endpoint=broker.endpoint, run=run.hex(), epoch=1, token=token)
    there = address
    if doors is not None:
        # Who joins by key knows neither run nor token.
        there = BusAddress(
            endpoint=broker.remote_endpoint, run=UNKNOWN_RUN.hex(), epoch=1, token=""
        )
    for name in (SENDER, RECEIVER):
        broker.expect_remote(name) if doors else broker.expect(name, 1)
    hello = Hello("client", Role.CLIENT)
    client = Endpoint(address, hello, on_message=lambda m, now: None, on_lost=lambda reason: None)
    client.start()
    client.send(Define(TASK))

    def job(role: Literal["sender", "receiver"], name: str) -> PeerJob:
        keys = doors.keys[name] if doors else None
        return PeerJob(role=role, messages=messages, address=there, keys=keys)

    try:
        return exchange({"sender": job("sender", SENDER), "receiver": job("receiver", RECEIVER)})
    finally:
        client.close()
        broker.stop()
        (folder / KEYED).unlink(missing_ok=True)
        folder.rmdir()


class _Doors:
    """Keys of a bus and of both ends, on an ipc socket of their own."""

    def __init__(self, folder: Path) -> None:
        from agentwire.bus.curve import new_pair

        public, secret = new_pair()
        pairs = {name: new_pair() for name in (SENDER, RECEIVER)}
        self._names = {pair[0]: name for name, pair in pairs.items()}
        self.access = RemoteAccess(ipc_endpoint(folder, KEYED), secret, self)
        self.keys = {name: (*pair, public) for name, pair in pairs.items()}

    def name_of(self, key: str) -> str | None:
        """As ``bus.access.Guest``."""
        return self._names.get(key)


@contextmanager
def _ipc() -> Iterator[str]:
    folder = make_run_folder()
    try:
        yield ipc_endpoint(folder)
    finally:
        (folder / "bus").unlink(missing_ok=True)
        folder.rmdir()


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
    """Alternating rounds of all kinds; who begins changes from round to round.

    Args:
        tell: called with (round, kind, figures) as they come.
        keep: called with the record so far after each whole round. Ctrl-C ends the benchmark with
            the rounds that were kept.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    machine = {"versions": bus_versions(), "hardware": hardware()}
    load = load_average()
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
            **machine,
        )

    kinds = list(measures)
    try:
        for number in range(rounds):
            first = number % len(kinds)
            found: dict[str, Figures] = {}
            for kind in kinds[first:] + kinds[:first]:
                found[kind] = measures[kind](messages)
                tell(number, kind, found[kind])
            for kind in kinds:
                seen[kind].append(found[kind])
            keep(record(interrupted=number + 1 < rounds))
    except KeyboardInterrupt:
        return record(interrupted=True)
    return record(interrupted=False)


def figures_of(seen: Rounds) -> Figures:
    """Medians over rounds, and each kind of bus as a ratio to its bare sockets."""
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
    """Versions of what the figures depend on."""
    wanted = ("python", "agentwire", "pyzmq", "msgpack")
    found = {name: version for name, version in versions().items() if name in wanted}
    found["libzmq"] = libzmq_version()
    try:
        found["isal"] = metadata.version("isal")
    except metadata.PackageNotFoundError:
        found["isal"] = "none: CRC-32 by zlib"
    return found
