"""Supervision outlives whatever fails beside it: a spawn, a callback, the journal, the broker.

Each test is a program of its own, so that its descriptors and its files can run out, and so that
all it writes to stderr can be judged.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import COMMAND_S

from agentwire.telemetry.journal import Journal, read_lines

pytestmark = pytest.mark.integration

START = """
import asyncio, contextlib, json, os, resource, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_run import fake_runtime
from agentwire.agent.launching.limits import AgentLimits, RestartPolicy
from agentwire.errors import AgentwireError, RequestError

folder = Path(sys.argv[2])
LIMITS = AgentLimits(load_s=30, progress_s=60, stop_s=5, restarts=RestartPolicy(3, 60, (0.0, 0.1)))
seen = {}

async def outcome(wire, text, deadline=30):
    try:
        return (await wire.send("sender", "receiver", text, deadline=deadline)).label
    except AgentwireError as error:
        return str(getattr(error, "code", type(error).__name__))

async def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)

def kill(wire, agent="receiver"):
    os.kill(wire.agents[agent].pid, signal.SIGKILL)

def break_spawn(cause):
    if cause == "folder":
        folder.rename(f"{folder}.away")
        return lambda: Path(f"{folder}.away").rename(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def fill_disk():
    # From now on no file of this process can grow, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

async def main():
"""
END = """
asyncio.run(asyncio.wait_for(main(), 100))
print(json.dumps(seen))
"""


def run(body: str, folder: Path, tracebacks: int = 0) -> dict[str, Any]:
    """Runs ``body`` as a coroutine in a process of its own; returns what it put into ``seen``."""
    lines = [f"    {line}" for line in body.strip("\n").splitlines()]
    here = Path(__file__).resolve().parents[1] / "integration"
    program = START + "\n".join(lines) + END
    command = [sys.executable, "-c", program, str(here), str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "never retrieved" not in done.stderr
    assert done.stderr.count("Traceback") == tracebacks, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.parametrize("cause", ["folder", "fds"])
def test_an_agent_that_cannot_be_spawned_is_down_and_comes_back(cause: str, tmp_path: Path) -> None:
    body = f"""
stages = []
async with fake_runtime(run_folder=folder, limits=LIMITS,
                        progress=lambda e: stages.append((e.agent, e.stage))) as wire:
    seen["first"] = await outcome(wire, "x")
    mend = break_spawn({cause!r})
    kill(wire)
    seen["meanwhile"] = await outcome(wire, "y")
    await until(lambda: ("receiver", "down") in stages)
    seen["at once"] = await outcome(wire, "y", 1)
    mend()
    await until(lambda: stages[-1] == ("receiver", "ready"))
    seen["after"] = await outcome(wire, "y")
    kill(wire)  # with a fresh restart budget
    seen["again"] = await outcome(wire, "x")
"""
    seen = run(body, tmp_path)
    assert seen["meanwhile"] == seen["at once"] == "agent_down"
    assert seen["after"] == "mixed" and seen["again"] == seen["first"] == "good"


def test_a_short_failure_to_spawn_loses_nothing(tmp_path: Path) -> None:
    body = """
async with fake_runtime(run_folder=folder) as wire:
    mend = break_spawn("folder")
    kill(wire)
    asking = asyncio.create_task(outcome(wire, "x"))
    await asyncio.sleep(1)
    mend()
    seen["outcome"] = await asking
"""
    assert run(body, tmp_path)["outcome"] == "good"


def test_an_agent_that_cannot_be_spawned_at_the_start_is_an_error(tmp_path: Path) -> None:
    body = """
(folder / "logs" / "receiver.log").mkdir(parents=True)
try:
    async with fake_runtime(run_folder=folder, limits=LIMITS):
        pass
except AgentwireError as error:
    seen["error"] = str(error)
"""
    assert "could not be started: IsADirectoryError" in run(body, tmp_path)["error"]


def test_a_callback_that_raises_stops_nothing(tmp_path: Path) -> None:
    body = """
def progress(event):
    raise ValueError("a bug \\x1b[31mof the user's")
async with fake_runtime(run_folder=folder, progress=progress) as wire:
    kill(wire)
    seen["outcome"] = await outcome(wire, "x")
    seen["faults"] = wire.status()["faults"]
"""
    seen = run(body, tmp_path, tracebacks=1)
    assert seen["outcome"] == "good"
    fault = seen["faults"]["progress callback"]
    assert fault["count"] > 3 and fault["last"] == "ValueError: a bug \x1b[31mof the user's"
    code, shown, _ = top(tmp_path / "run")
    assert code == 0 and "fault: progress callback failed" in shown
    assert "of the user's" in shown and "\x1b" not in shown


def top(folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "agentwire", "top", "--once", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "status",
    ["{}", '{"time": "now"}', "[]", "\ud83d", '{"time": 1, "ended": true, "bus": [], "agents": {}}',
     '{"time": 1e999, "bus": {}, "outstanding": 0, "agents": {}, "outcomes": [["a"]]}'],
)  # fmt: skip
def test_a_damaged_status_is_named(tmp_path: Path, status: str) -> None:
    (tmp_path / "status.json").write_bytes(status.encode(errors="surrogatepass"))
    code, _, errors = top(tmp_path)
    assert code == 2 and errors.count("\n") == 2, errors
    assert "unexpected" not in errors and str(tmp_path) in errors.replace("\n", "")


def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    """The journal, the recording, the status file and the logs cannot be written."""
    body = """
from prometheus_client import generate_latest
async with fake_runtime(run_folder=folder, record=True, receiver={"crash_on": "poison"}) as wire:
    seen["first"] = await outcome(wire, "x")
    fill_disk()
    kill(wire, "sender")
    seen["outcomes"] = [await outcome(wire, text) for text in ("x", "poison", "x")]
    await asyncio.sleep(1.2)  # the status file is due
    seen["faults"] = wire.status()["faults"]
    seen["metric"] = generate_latest(wire.registry).decode()
"""
    seen = run(body, tmp_path)
    assert seen["first"] == "good" and seen["outcomes"] == ["good", "dead_letter", "good"]
    assert seen["faults"]["journal"]["count"] >= 6
    assert {"dead letters", "status file"} <= set(seen["faults"])
    assert 'agentwire_faults_total{kind="journal"}' in seen["metric"]
    assert [e["event"] for e in read_lines(tmp_path / "run" / "journal.jsonl")][-1] == "finished"


def test_a_user_s_journal_that_raises_stops_nothing(tmp_path: Path) -> None:
    body = """
class Broken:
    def write(self, event, **fields):
        raise RuntimeError("no database")
async with fake_runtime(journal=Broken()) as wire:
    kill(wire)
    seen["outcome"] = await outcome(wire, "x")
    seen["count"] = wire.status()["faults"]["journal"]["count"]
"""
    seen = run(body, tmp_path, tracebacks=1)
    assert seen["outcome"] == "good" and seen["count"] > 5


def test_a_broker_that_dies_ends_every_request_and_the_agents(tmp_path: Path) -> None:
    body = """
stages, failed = [], ""
try:
    async with fake_runtime(receiver={"decode_ms": 3000}, run_folder=folder,
                            progress=lambda e: stages.append(e.stage)) as wire:
        asking = asyncio.create_task(outcome(wire, "x"))
        await asyncio.sleep(0.5)
        def broken():
            raise OSError(24, "Too many open files")
        wire._lifecycle._broker._listener.receive = broken
        seen["outcome"] = await asking
        seen["next"] = await outcome(wire, "y")
        await until(lambda: stages.count("down") == 2)
except OSError as error:
    failed = str(error)
seen["failed"] = failed
seen["restarts"] = stages.count("lost")
"""
    seen = run(body, tmp_path)
    assert seen["outcome"] == "closing" and seen["next"] == "BusClosed"
    assert "Too many open files" in seen["failed"] and seen["restarts"] == 0


def test_a_client_that_cannot_reconnect_tries_again(tmp_path: Path) -> None:
    body = """
async with fake_runtime(receiver={"decode_ms": 300}) as wire:
    client = wire._lifecycle.client
    connect, attempts = client._connect, []
    def failing(*callbacks):
        attempts.append(1)
        if len(attempts) < 4:
            raise OSError(24, "Too many open files")
        return connect(*callbacks)
    client._connect = failing
    asking = asyncio.create_task(outcome(wire, "x"))
    await asyncio.sleep(0.1)
    wire._lifecycle._broker.disconnect("client", 1)
    seen["outcome"], seen["attempts"] = await asking, len(attempts)
"""
    seen = run(body, tmp_path)
    assert seen["outcome"] == "good" and seen["attempts"] == 4


def test_a_journal_says_where_lines_are_missing(tmp_path: Path) -> None:
    """A line that the disk has no room for is not left half-written."""
    import resource

    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("first", reason="\udc80")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = journal.path.stat().st_size
    try:
        for room in (10, 0):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, before[1]))
            with pytest.raises(OSError):
                journal.write("lost")
            assert journal.path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.write("next")
    journal.close()
    lines = list(read_lines(journal.path))
    assert [(line["seq"], line["event"]) for line in lines] == [
        (0, "first"),
        (1, "lines_lost"),
        (2, "next"),
    ]
    assert lines[1]["lines"] == 2
