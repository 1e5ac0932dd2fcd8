"""An agent on another machine joins with its key, and reconnects after the link or bus was lost.

A TCP proxy stands for the network. Where network namespaces can be made (as root on Linux), the
agent also runs in its own namespace, behind a virtual cable with delay and loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fake_run import LIMITS, TASK, fake_runtime, until
from patience import EVENT_S

from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.placement import Remote
from agentwire.bus.keys import AllowList, KeyFolder
from agentwire.bus.transport import RemoteAccess
from agentwire.errors import AgentwireError
from agentwire.model.fake import answer
from agentwire.runtime import Runtime
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from agentwire.wire.session import Timing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from chaos.links import ByteLink

pytestmark = pytest.mark.integration

TEXTS = [f"review number {n}" for n in range(64)]
TIMING = Timing(ping_ms=200, liveness_ms=2_000)
AGENT = """
import sys
from pathlib import Path
from agentwire.agent.join import join
from agentwire.spec.agent import AgentSpec
from agentwire.bus.transport import PeerKeys
from agentwire.bus.keys import read_pair, read_public

pair = read_pair(Path(sys.argv[2]))
keys = PeerKeys(pair.public, pair.secret, read_public(sys.argv[3])[1])
spec = AgentSpec.model_validate_json(sys.argv[4])
sys.exit(join(spec, sys.argv[1], keys, on_event=lambda line: print(line, flush=True)))
"""


class Elsewhere:
    """The other machine: its keys, and the process of its agent."""

    def __init__(self, folder: Path) -> None:
        self.keys = KeyFolder(folder / "keys")
        self.server = self.keys.server()
        self.pair = self.keys.new("receiver")
        self.keys.allow("receiver", self.pair.public)
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def remote(self, listen: str) -> Remote:
        access = RemoteAccess(listen, self.server.secret, AllowList(self.keys.allowed))
        return Remote(access, frozenset(["receiver"]))

    def start(self, runtime: Runtime, address: str, *before: str) -> None:
        spec = runtime._lifecycle.deployment.agents["receiver"]
        command = [*before, sys.executable, "-c", AGENT, address]
        files = [str(self.keys.folder / name) for name in ("receiver.key", "bus.pub")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *files, spec.model_dump_json()], stdout=log, stderr=log
            )

    def stop(self) -> None:
        """Stop the agent; it must end even while there is no bus."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                assert self.process.wait(EVENT_S) == 0
            finally:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    made = Elsewhere(tmp_path)
    yield made
    made.stop()


def right(outcomes: list[Outcome]) -> bool:
    wanted = [answer(text, TASK.labels) for text in TEXTS]
    return [o.label for o in outcomes if isinstance(o, Reply)] == wanted


@contextlib.asynccontextmanager
async def started(
    runtime: Runtime, elsewhere: Elsewhere, link: list[ByteLink]
) -> AsyncIterator[None]:
    opening = asyncio.create_task(runtime.start())
    try:
        await until(lambda: bool(runtime.remote_endpoint), "the bus listens")
        link.append(ByteLink(runtime.remote_endpoint, "tcp://127.0.0.1:0"))
        elsewhere.start(runtime, link[0].address)
        await opening
        yield
    finally:
        await runtime.aclose()
        for each in link:
            each.close()


async def test_an_agent_joins_over_tcp_and_comes_back_after_a_cut(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    slow, run = {"decode_ms": 10.0}, tmp_path / "run"
    runtime = fake_runtime(
        receiver=slow,
        timing=TIMING,
        remote=elsewhere.remote("tcp://127.0.0.1:*"),
        run_folder=run,
        record=True,
    )
    link: list[ByteLink] = []
    async with started(runtime, elsewhere, link):
        assert right(await runtime.send_batch("sender", "receiver", TEXTS))
        first = runtime.agents["receiver"].epoch
        assert runtime.agents["receiver"].pid == 0  # not ours
        sending = asyncio.create_task(runtime.send_batch("sender", "receiver", TEXTS, deadline=60))
        await asyncio.sleep(0.05)
        link[0].cut()
        assert right(await sending)
        await until(lambda: runtime.agents["receiver"].epoch > first, "it is a new incarnation")
        # While the network is down, rows wait.
        link[0].refuse(True)
        sending = asyncio.create_task(runtime.send_batch("sender", "receiver", TEXTS, deadline=60))
        await asyncio.sleep(1.0)
        assert not sending.done()
        link[0].refuse(False)
        assert right(await sending)
    log = elsewhere.log.read_text()
    assert log.count("is loaded") == 1 and "reconnecting" in log
    # No file on either machine contains a private key.
    left = [path for path in (*run.rglob("*"), elsewhere.log) if path.is_file()]
    assert {"journal.jsonl", "bus.jsonl", "sender.log"} < {path.name for path in left}
    for secret in (elsewhere.server.secret, elsewhere.pair.secret):
        key = secret.encode() if isinstance(secret, str) else secret
        assert len(key) == 40  # Z85
        assert not [path for path in left if key in path.read_bytes()]


async def test_an_agent_joins_the_next_bus_at_the_same_address(elsewhere: Elsewhere) -> None:
    runtime = fake_runtime(timing=TIMING, remote=elsewhere.remote("tcp://127.0.0.1:*"))
    opening = asyncio.create_task(runtime.start())
    await until(lambda: bool(runtime.remote_endpoint), "the bus listens")
    address = runtime.remote_endpoint
    elsewhere.start(runtime, address)
    await opening
    assert right(await runtime.send_batch("sender", "receiver", TEXTS))
    await runtime.aclose()
    async with fake_runtime(timing=TIMING, remote=elsewhere.remote(address)) as second:
        assert right(await second.send_batch("sender", "receiver", TEXTS))
    assert elsewhere.log.read_text().count("is loaded") == 1


async def test_a_run_does_not_wait_forever(elsewhere: Elsewhere) -> None:
    limits = AgentLimits(load_s=0.5, restarts=LIMITS.restarts)
    runtime = fake_runtime(limits=limits, remote=elsewhere.remote("tcp://127.0.0.1:*"))
    with pytest.raises(AgentwireError, match="did not connect") as error:
        await runtime.start()
    assert "agentwire agent" in (error.value.hint or "")


# -- network namespaces ---------------------------------------------------------------------


def shell(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """A network namespace, and the device at this end of the cable to it."""
    ip = shutil.which("ip")
    name, here, there = f"aw{os.getpid()}", f"awh{os.getpid() % 9999}", f"awt{os.getpid() % 9999}"
    if ip is None or os.geteuid() != 0 or not shell(ip, "netns", "add", name):
        pytest.skip("network namespaces cannot be made here (they need `ip` and root)")
    try:
        made = (
            shell(ip, "link", "add", here, "type", "veth", "peer", "name", there)
            and shell(ip, "link", "set", there, "netns", name)
            and shell(ip, "addr", "add", "10.231.7.1/24", "dev", here)
            and shell(ip, "link", "set", here, "up")
            and shell(ip, "-n", name, "addr", "add", "10.231.7.2/24", "dev", there)
            and shell(ip, "-n", name, "link", "set", there, "up")
        )
        if not made:
            pytest.skip("virtual cables (veth) cannot be made here (they need `ip` and root)")
        yield name, here
    finally:
        shell(ip, "link", "del", here)
        shell(ip, "netns", "del", name)


async def test_two_network_namespaces(elsewhere: Elsewhere, cable: tuple[str, str]) -> None:
    """Every row is answered once and correctly over a link with cuts, delays and loss."""
    name, here = cable
    runtime = fake_runtime(timing=TIMING, remote=elsewhere.remote("tcp://10.231.7.1:*"))
    opening = asyncio.create_task(runtime.start())
    try:
        await until(lambda: bool(runtime.remote_endpoint), "the bus listens")
        elsewhere.start(runtime, runtime.remote_endpoint, "ip", "netns", "exec", name)
        await opening
        assert right(await runtime.send_batch("sender", "receiver", TEXTS, deadline=60))
        sending = asyncio.create_task(runtime.send_batch("sender", "receiver", TEXTS, deadline=60))
        shell("ip", "link", "set", here, "down")
        await asyncio.sleep(2.5)  # longer than liveness_ms: the agent is lost
        shell("ip", "link", "set", here, "up")
        assert right(await sending)
        if shell("tc", "qdisc", "add", "dev", here, "root", "netem", "delay", "20ms", "loss", "3%"):
            assert right(await runtime.send_batch("sender", "receiver", TEXTS, deadline=90))
    finally:
        await runtime.aclose()
