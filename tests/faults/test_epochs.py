"""A remote agent joins whatever its clock says, and a process that was replaced does not come back.

Both machines are this one; the agent's own clock is set back in its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from chaos.links import ByteLink
from fake_run import fake_runtime, until

from agentwire.agent.launching.placement import Remote
from agentwire.bus.directory import epoch_to_exceed
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.keys import AllowList, KeyFolder
from agentwire.bus.transport import PeerKeys, RemoteAccess, transport_for
from agentwire.errors import NackCode
from agentwire.runtime import Runtime
from agentwire.spec.agent import BusAddress
from agentwire.wire.messages import Hello, Role
from agentwire.wire.session import UNKNOWN_RUN, Timing

pytestmark = pytest.mark.integration

HOUR = 3600
TIMING = Timing(ping_ms=200, liveness_ms=2_000)
AGENT = """
import sys, time
from pathlib import Path
ahead = int(sys.argv[4])
real = time.time_ns
time.time_ns = lambda: real() + ahead * 10**9
from agentwire.agent.join import join
from agentwire.bus.transport import PeerKeys
from agentwire.bus.keys import read_pair, read_public
from agentwire.errors import InputError
from agentwire.spec.agent import AgentSpec

keys = Path(sys.argv[2])
pair = read_pair(keys / "receiver.key")
own = PeerKeys(pair.public, pair.secret, read_public(str(keys / "bus.pub"))[1])
spec = AgentSpec.model_validate_json(sys.argv[3])
try:
    sys.exit(join(spec, sys.argv[1], own, on_event=lambda line: print(line, flush=True)))
except InputError as error:
    print(error, error.hint, flush=True)
    sys.exit(2)
"""


class Elsewhere:
    """The other machine: its keys, and the processes of the agent."""

    def __init__(self, folder: Path) -> None:
        self.keys = KeyFolder(folder / "keys")
        self.server = self.keys.server()
        self.pair = self.keys.new("receiver")
        self.keys.allow("receiver", self.pair.public)
        self.log = folder / "agent.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.lost: list[str] = []

    def remote(self) -> Remote:
        access = RemoteAccess("tcp://127.0.0.1:*", self.server.secret, AllowList(self.keys.allowed))
        return Remote(access, frozenset(["receiver"]))

    def start(self, runtime: Runtime, address: str, *, ahead: int) -> None:
        spec = runtime._lifecycle.deployment.agents["receiver"].model_dump_json()
        command = [sys.executable, "-c", AGENT, address, str(self.keys.folder), spec, str(ahead)]
        with self.log.open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def knock(self, address: str, epoch: int) -> Endpoint:
        """A peer with the agent's key and this epoch."""
        keys = PeerKeys(self.pair.public, self.pair.secret, self.server.public)
        endpoint = Endpoint(
            BusAddress(endpoint=address, run=UNKNOWN_RUN.hex(), epoch=epoch, token=""),
            Hello("receiver", Role.AGENT),
            on_message=lambda message, arrival: None,
            on_lost=self.lost.append,
            transport=transport_for(address, keys=keys),
        )
        endpoint.start()
        return endpoint


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    made = Elsewhere(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def started(elsewhere: Elsewhere, *, ahead: int) -> AsyncIterator[Runtime]:
    runtime = fake_runtime(timing=TIMING, remote=elsewhere.remote())
    opening = asyncio.create_task(runtime.start())
    try:
        await until(lambda: bool(runtime.remote_endpoint), "the bus listens")
        elsewhere.start(runtime, runtime.remote_endpoint, ahead=ahead)
        await opening
        yield runtime
    finally:
        await runtime.aclose()


async def joined_after(runtime: Runtime, epoch: int) -> None:
    await until(lambda: runtime.agents["receiver"].epoch > epoch, "it joins again")


async def answers(runtime: Runtime) -> bool:
    return (await runtime.send("sender", "receiver", "x", deadline=30)).label == "good"


async def test_a_process_whose_clock_was_set_back_joins_again(elsewhere: Elsewhere) -> None:
    async with started(elsewhere, ahead=HOUR) as runtime:
        assert await answers(runtime)
        for ahead in (0, -HOUR, -100 * 365 * 24 * HOUR):  # at last before 1970
            first = runtime.agents["receiver"].epoch
            elsewhere.processes[-1].send_signal(signal.SIGKILL)
            elsewhere.start(runtime, runtime.remote_endpoint, ahead=ahead)
            await joined_after(runtime, first)
            assert await answers(runtime)


async def test_a_cut_link_needs_no_clock(elsewhere: Elsewhere) -> None:
    """A process counts its connections, so a step of the clock meanwhile means nothing."""
    runtime = fake_runtime(timing=TIMING, remote=elsewhere.remote())
    opening = asyncio.create_task(runtime.start())
    await until(lambda: bool(runtime.remote_endpoint), "the bus listens")
    link = ByteLink(runtime.remote_endpoint, "tcp://127.0.0.1:0")
    elsewhere.start(runtime, link.address, ahead=-HOUR)
    await opening
    try:
        for _ in range(2):
            before = runtime.agents["receiver"].epoch
            link.cut()
            await joined_after(runtime, before)
            assert runtime.agents["receiver"].epoch < before + 10
        assert await answers(runtime)
    finally:
        await runtime.aclose()
        link.close()


async def test_the_newer_process_stays_and_the_older_one_ends(elsewhere: Elsewhere) -> None:
    """Also where the newer one's clock is behind."""
    async with started(elsewhere, ahead=0) as runtime:
        old, first = elsewhere.processes[0], runtime.agents["receiver"].epoch
        elsewhere.start(runtime, runtime.remote_endpoint, ahead=-HOUR)
        await until(lambda: old.poll() is not None, "the older one ends")
        output = elsewhere.log.read_text()
        assert old.returncode == 2 and "Let only one process run this agent" in output
        assert "keys list" not in output
        assert runtime.agents["receiver"].epoch > first and await answers(runtime)


async def test_a_stale_epoch_is_refused_and_told_what_to_exceed(elsewhere: Elsewhere) -> None:
    async with started(elsewhere, ahead=0) as runtime:
        latest = runtime.agents["receiver"].epoch
        for epoch in (0, latest - 1, latest):
            elsewhere.lost.clear()
            peer = elsewhere.knock(runtime.remote_endpoint, epoch)
            await until(lambda: bool(elsewhere.lost), "it is refused")
            assert peer.refusal is NackCode.STALE_EPOCH and not peer.admitted
            assert epoch_to_exceed(elsewhere.lost[0]) == latest
            await asyncio.to_thread(peer.close)
        assert runtime.agents["receiver"].epoch == latest and await answers(runtime)
