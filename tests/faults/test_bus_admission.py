"""What other processes of the same user may do at a running bus, and what they may not.

The peers know the run's token and speak the protocol (``tests/foreign/client.py``), but mean harm
or are broken. The runtime's own requests must not notice.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import zmq

from agentwire.model.fake import answer
from agentwire.runtime import Runtime

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from fake_run import TASK, fake_runtime, until

pytestmark = pytest.mark.integration
HERE = Path(__file__).resolve().parent
FOREIGN = HERE.parent / "foreign" / "client.py"
DECODING = {"temperature": 0, "top_p": 1000, "seed": 0, "stop": [], "stream": False}
AGENT, CLIENT = "agent", "client"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign_client", FOREIGN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


foreign = load()


def task(name: str) -> dict[str, Any]:
    return {
        "name": name, "prompt": "Answer:", "text_prompt": "{text}\nAnswer:",
        "labels": ["good", "bad", "mixed"], "relay": {"template": "", "max_new_tokens": 0},
        "max_new_tokens": 0, "decoding": DECODING, "form": "text",
    }  # fmt: skip


class Stranger(foreign.Client):  # type: ignore[misc, name-defined]
    """A client that may choose its role and epoch, and closes without Goodbye."""

    def hello(self, role: str = CLIENT, epoch: int = 1) -> dict[str, Any]:
        """Says Hello; the header of the answer."""
        about = {"name": self.name, "role": role, "token": self.token, "versions": [2]}
        self.send(foreign.HELLO, {**about, "e": epoch})
        while True:
            header, _, _ = self.receive()
            if header["t"] in (foreign.WELCOME, foreign.NACK):
                return dict(header)

    def define(self, name: str) -> str:
        self.send(foreign.DEFINE, {}, body=foreign.msgpack.packb(task(name)))
        return str(foreign.task_id(task(name)))


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with fake_runtime() as runtime:
        yield runtime


@pytest.fixture
def peers() -> Iterator[list[Stranger]]:
    made: list[Stranger] = []
    yield made
    for peer in made:
        peer.socket.close(linger=0)


def join(runtime: Runtime, peers: list[Stranger], name: str, **changes: str) -> Stranger:
    known = runtime.invitation() | changes
    peer = Stranger(known["endpoint"], bytes.fromhex(known["run"]), known["token"], name)
    peers.append(peer)
    return peer


async def works(runtime: Runtime) -> None:
    texts = [os.urandom(4).hex() for _ in range(3)]
    replies = await runtime.send_batch("sender", "receiver", texts)
    assert [r.label for r in replies] == [answer(t, TASK.labels) for t in texts]  # type: ignore[union-attr]


# -- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "epoch"),
    [
        ("client", CLIENT, 2**62),
        ("client", CLIENT, 1),
        ("client", AGENT, 5),
        ("broker", CLIENT, 1),
        ("sender", AGENT, 1),
        ("sender", AGENT, 2),
        ("receiver", CLIENT, 2**62),
    ],
)
async def test_a_place_of_the_run_cannot_be_taken(
    runtime: Runtime, peers: list[Stranger], name: str, role: str, epoch: int
) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.gather(*(works(runtime) for _ in range(20)))
    peer = join(runtime, peers, name)
    header = await loop.run_in_executor(None, peer.hello, role, epoch)
    assert (header["t"], header["code"]) == (foreign.NACK, "unauthorized")
    assert header["reason"]
    await requests
    await works(runtime)
    assert all(info.restarts == 0 for info in runtime.agents.values())


async def test_an_agent_that_is_expected_cannot_be_impersonated_before_it_connects(
    peers: list[Stranger],
) -> None:
    runtime = fake_runtime(sender={"load_ms": 1500})
    starting = asyncio.create_task(runtime.start())
    loop = asyncio.get_running_loop()
    await until(lambda: bool(runtime.invitation().get("endpoint")), "the bus listens")
    header = await loop.run_in_executor(None, join(runtime, peers, "sender").hello, AGENT, 1)
    assert (header["t"], header["code"]) == (foreign.NACK, "unauthorized")
    await starting
    try:
        await works(runtime)
    finally:
        await runtime.aclose()


async def test_a_live_client_is_not_displaced_and_a_dead_one_is(
    runtime: Runtime, peers: list[Stranger]
) -> None:
    def talk() -> None:
        first, thief = join(runtime, peers, "tool"), join(runtime, peers, "tool")
        first.join()
        header = thief.hello(epoch=2)
        assert header["code"] == "unauthorized" and "in use" in header["reason"]
        answers = first.ask("sender->receiver", first.define("mine"), ["fine"], "soft")
        assert "scores" in answers[0]
        first.socket.close(linger=0)  # it died without a Goodbye
        for epoch in range(3, 100):
            header = join(runtime, peers, "tool").hello(epoch=epoch)
            if header["t"] == foreign.WELCOME:
                return
        raise AssertionError("a dead client keeps its name")

    await asyncio.to_thread(talk)
    await works(runtime)


# -- tasks ----------------------------------------------------------------------------------


async def test_the_tasks_of_one_client_do_not_evict_those_of_another(
    runtime: Runtime, peers: list[Stranger]
) -> None:
    await works(runtime)

    def flood() -> None:
        other, greedy = join(runtime, peers, "other"), join(runtime, peers, "greedy")
        other.join()
        mine = other.define("mine")
        assert "scores" in other.ask("sender->receiver", mine, ["before"], "soft")[0]
        greedy.join()
        for number in range(3_000):
            greedy.define(f"task {number}")
        last = greedy.define("last")
        assert "scores" in greedy.ask("sender->receiver", last, ["hers"], "soft")[0]
        assert "scores" in other.ask("sender->receiver", mine, ["after"], "soft")[0]
        gone = foreign.task_id(task("task 0"))
        assert greedy.ask("sender->receiver", gone, ["old"], "soft")[0]["code"] == "unknown_task"

    await asyncio.to_thread(flood)
    await works(runtime)
    assert all(info.restarts == 0 for info in runtime.agents.values())


async def test_a_flood_of_free_messages_does_not_end_an_agent(peers: list[Stranger]) -> None:
    async with fake_runtime(receiver={"decode_ms": 1500}) as runtime:
        slow = asyncio.create_task(runtime.send("sender", "receiver", "slow"))

        def flood() -> None:
            greedy = join(runtime, peers, "greedy")
            greedy.join()
            for number in range(9_000):
                about = {"wire": "sender->receiver", "origin": ""}
                greedy.send(14, about, [number.to_bytes(16, "big")])  # Cancel
                if number % 4 == 0:
                    greedy.define(f"task {number}")

        await asyncio.to_thread(flood)
        assert (await slow).label
        await works(runtime)
        assert all(info.restarts == 0 for info in runtime.agents.values())


# -- descriptors and bytes ------------------------------------------------------------------


class Run:
    """``limited_run.py`` in a child process."""

    def __init__(self, limit: int, *keys: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "limited_run.py"), str(limit), *map(str, keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        self.invitation: dict[str, str] = json.loads(self.process.stdout.readline())
        self.path = self.invitation["endpoint"].removeprefix("ipc://")
        host, _, port = self.invitation["remote"].removeprefix("tcp://").rpartition(":")
        self.remote = (host, int(port or 0))

    def ask(self, text: str) -> float:
        """Has one text answered; the memory of the process in MiB."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        label, memory = json.loads(self.process.stdout.readline())
        assert label == answer(text, TASK.labels)
        return float(memory)

    def end(self) -> str:
        """Ends it in good order; what it wrote to stderr."""
        _, errors = self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0, errors
        assert "Traceback" not in errors
        return errors


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(limit: int, *keys: Path) -> Run:
        runs.append(Run(limit, *keys))
        return runs[-1]

    yield make
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def crowd(address: str | tuple[str, int], count: int) -> list[socket.socket]:
    """Raw connections that send nothing."""
    made: list[socket.socket] = []
    deadline = time.monotonic() + 60
    while len(made) < count and time.monotonic() < deadline:
        one = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        one.settimeout(0.05 if isinstance(address, str) else 3)
        try:
            one.connect(address)
            made.append(one)
        except OSError:  # it does not listen now, or as many wait as may
            one.close()
            time.sleep(0.0005)
    assert len(made) == count
    return made


def is_closed(one: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    one.setblocking(False)
    try:
        while one.recv(100):  # ZeroMQ's greeting
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(("limit", "count"), [(1024, 1_010), (1024, 4_000), (256, 1_000)])
def test_a_crowd_of_connections_does_not_end_the_runner(
    start: Callable[..., Run], limit: int, count: int
) -> None:
    run = start(limit)
    run.ask("before")
    made = crowd(run.path, count)
    run.ask("during")
    files = psutil.Process(run.process.pid).num_fds()
    assert files < 0.8 * limit
    for one in made:
        one.close()
    run.ask("after")
    assert "closing new ones" in run.end()


def test_a_crowd_of_tcp_connections_does_not_end_the_runner(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start(300, tmp_path)
    run.ask("before")
    made: list[socket.socket] = []
    thread = threading.Thread(target=lambda: made.extend(crowd(run.remote, 300)))
    thread.start()
    most = 0
    while thread.is_alive():
        run.ask("during")
        most = max(most, psutil.Process(run.process.pid).num_fds())
    assert len(made) == 300 and most < 0.8 * 300
    time.sleep(0.5)
    assert sum(map(is_closed, made)) > 300 - 75 - 17  # told at once, not left to wait
    for one in made:
        one.close()
    run.ask("after")
    assert "closing new ones" in run.end()


def test_connections_without_a_hello_give_way_to_a_client(start: Callable[..., Run]) -> None:
    run = start(512)
    context = zmq.Context()
    idle = [context.socket(zmq.DEALER) for _ in range(200)]
    for one in idle:
        one.linger = 0
        one.connect(run.invitation["endpoint"])
    time.sleep(6)
    known = run.invitation
    peer = Stranger(known["endpoint"], bytes.fromhex(known["run"]), known["token"], "late")
    peer.join()
    peer.leave()
    run.ask("after")
    for one in idle:
        one.close()
    context.term()
    run.end()


def test_a_client_that_never_reads_is_disconnected(start: Callable[..., Run]) -> None:
    run = start(1024)
    before = run.ask("before")
    known = run.invitation
    peer = Stranger(known["endpoint"], bytes.fromhex(known["run"]), known["token"], "deaf")
    peer.socket.rcvhwm = 1
    peer.join()
    wide = task("wide") | {"labels": [f"l{number}" for number in range(4000)]}
    peer.send(foreign.DEFINE, {}, body=foreign.msgpack.packb(wide))
    about = {"wire": "@receiver", "task": foreign.task_id(wide), "origin": "", "reason": ""}
    for _ in range(100):  # an answer has 4 MB
        ids = [[os.urandom(16), None, bytes(16), 1] for _ in range(256)]
        peer.send(foreign.TEXT, {**about, "solo": False, "stages": {}}, ids, b"x" * 256)
        time.sleep(0.02)
    time.sleep(2)
    assert run.ask("after") < before + 200
    peer.socket.close(linger=0)
    assert "did not read" in run.end()


# -- refusals -------------------------------------------------------------------------------


async def test_a_refusal_without_rows_names_the_message(
    runtime: Runtime, peers: list[Stranger]
) -> None:
    def refusal(peer: Stranger) -> str:
        while True:
            header, rows, _ = peer.receive()
            if header["t"] == foreign.NACK:
                assert not rows
                return str(header["reason"])

    def talk() -> None:
        peer = join(runtime, peers, "tool")
        peer.join()
        peer.send(foreign.DEFINE, {}, body=foreign.msgpack.packb(task("x") | {"labels": 5}))
        assert refusal(peer).startswith("message 1: ")
        peer.send(
            foreign.DEFINE, {}, body=foreign.msgpack.packb(task("x") | {"prompt": "p" * 40_000})
        )
        assert refusal(peer).startswith("message 2: ")
        peer.socket.send_multipart([b"no msgpack", b"", b""])
        peer.out += 1
        assert refusal(peer).startswith("message 3: ")
        answers = peer.ask("sender->receiver", peer.define("fine"), ["fine"], "soft")
        assert "scores" in answers[0]
        late = join(runtime, peers, "late")
        late.out = 7
        assert "number 0" in late.hello()["reason"]

    await asyncio.to_thread(talk)
