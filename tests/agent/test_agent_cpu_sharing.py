"""CPU sharing through file locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentwire.agent.cpu_sharing import CpuSharing, FileLock, Lender, open_cpu_sharing


def agents(folder: Path, shares: dict[str, int]) -> dict[str, CpuSharing]:
    made = {name: open_cpu_sharing(folder, name, shares) for name in shares}
    return {name: agent for name, agent in made.items() if agent is not None}


def test_an_agent_that_computes_alone_gets_all_threads_until_the_owner_is_busy(
    tmp_path: Path,
) -> None:
    pair = agents(tmp_path, {"llama": 2, "gemma": 3})
    pair["llama"].begin()
    assert pair["llama"].threads() == 5
    pair["gemma"].begin()
    # The owner has its own threads at once. The borrower notices at its next step.
    assert pair["gemma"].threads() == 3
    assert pair["llama"].threads() == 2
    pair["gemma"].end()
    assert pair["llama"].threads() == 5
    pair["llama"].end()


def test_a_thread_is_lent_to_one_agent_at_a_time(tmp_path: Path) -> None:
    three = agents(tmp_path, {"a": 1, "b": 1, "c": 2})
    three["a"].begin()
    three["b"].begin()
    assert (three["a"].threads(), three["b"].threads()) == (3, 1)
    three["a"].end()
    assert three["b"].threads() == 4
    three["a"].begin()
    assert three["b"].threads() == 3
    assert three["a"].threads() == 1
    # Once each has had a step, all together never use more threads than there are.
    three["c"].begin()
    for agent in three.values():
        agent.threads()
    assert sum(agent.threads() for agent in three.values()) == 4


def test_a_busy_lock_that_could_not_be_taken_is_tried_again(tmp_path: Path) -> None:
    pair = agents(tmp_path, {"a": 1, "b": 1})
    check = FileLock(tmp_path / "a.busy.lock")  # an agent that checks
    assert check.acquire()
    pair["a"].begin()
    check.release()
    pair["a"].threads()
    pair["b"].begin()
    assert pair["b"].threads() == 1


# -- contention -------------------------------------------------------------


class Clocks:
    """Wall and processor time of an agent whose threads get a given share of their cores."""

    def __init__(self) -> None:
        self.now = self.used = 0.0

    def step(self, sharing: CpuSharing, share: float) -> int:
        threads = sharing.threads()
        self.now += 0.02
        self.used += 0.02 * threads * share
        return threads


def alone(clocks: Clocks, folder: Path) -> CpuSharing:
    lender = Lender(FileLock(folder / "b.busy"), [FileLock(folder / "b.0")])
    busy = FileLock(folder / "a.busy")
    return CpuSharing(1, busy, [lender], clock=lambda: clocks.now, used=lambda: clocks.used)


def test_under_contention_nothing_is_borrowed_for_a_while(tmp_path: Path) -> None:
    clocks = Clocks()
    sharing = alone(clocks, tmp_path)
    sharing.begin()
    assert {clocks.step(sharing, 1.0) for _ in range(100)} == {2}
    contended = [clocks.step(sharing, 0.4) for _ in range(2000)]
    assert contended[:2] == [2, 2]
    # It tries again after 1, 2, 4, 8, 16 seconds.
    assert 20 < contended.count(2) < 60
    assert 1 in contended[:20] and 2 in contended[50:80] and 2 not in contended[1200:1500]
    recovered = [clocks.step(sharing, 1.0) for _ in range(2000)]
    assert recovered[-500:] == [2] * 500


def test_idle_time_is_not_contention(tmp_path: Path) -> None:
    clocks = Clocks()
    sharing = alone(clocks, tmp_path)
    for _ in range(50):
        sharing.begin()
        assert [clocks.step(sharing, 1.0) for _ in range(3)] == [2, 2, 2]
        sharing.end()
        clocks.now += 5.0


# -- files ------------------------------------------------------------------------------------


def test_file_locks(tmp_path: Path) -> None:
    mine, yours = FileLock(tmp_path / "f"), FileLock(tmp_path / "f")
    assert not yours.held_elsewhere()
    assert mine.acquire() and mine.acquire()
    assert yours.held_elsewhere() and not yours.acquire() and not mine.held_elsewhere()
    yours.release()  # not held here: nothing happens
    assert not yours.acquire()
    mine.release()
    assert not yours.held_elsewhere() and yours.acquire()
    assert (tmp_path / "f").stat().st_mode & 0o077 == 0


HOLD = """
import sys, time
from pathlib import Path
from agentwire.agent.cpu_sharing import open_cpu_sharing
sharing = open_cpu_sharing(Path(sys.argv[1]), "b", {"a": 1, "b": 1})
sharing.begin()
print(sharing.threads(), flush=True)
time.sleep(600)
"""


def test_the_threads_of_a_dead_agent_can_be_borrowed(tmp_path: Path) -> None:
    shares = {"a": 1, "b": 1}
    sharing = open_cpu_sharing(tmp_path, "a", shares)
    assert sharing is not None
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "2\n"  # the other agent is idle
        sharing.begin()
        assert sharing.threads() == 1
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert sharing.threads() == 2
    finally:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()


@pytest.mark.parametrize(
    ("name", "shares"), [("a", {}), ("a", {"a": 1}), ("c", {"a": 1, "b": 1})], ids=str
)
def test_no_sharing_without_another_agent(
    tmp_path: Path, name: str, shares: dict[str, int]
) -> None:
    assert open_cpu_sharing(tmp_path, name, shares) is None


def test_no_sharing_without_a_folder(tmp_path: Path) -> None:
    assert open_cpu_sharing(tmp_path / "gone", "a", {"a": 1, "b": 1}) is None
