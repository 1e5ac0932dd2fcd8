"""What other processes of the same user may do at a running bus, and what they may not.

The peers know the run's token and speak the protocol (``tests/foreign/client.py``), but mean harm
or are broken. The runtime's own requests must not notice.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentwire.model.fake import answer
from agentwire.runtime import Runtime

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from fake_run import TASK, fake_runtime, until

pytestmark = pytest.mark.integration
FOREIGN = Path(__file__).resolve().parents[1] / "foreign" / "client.py"
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
