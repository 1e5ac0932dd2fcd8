"""Lending of CPU threads: who may use which, on flags in memory and on locked files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentwire.agent.cpu_flags import FileFlag, lending_in
from agentwire.agent.cpu_sharing import CpuSharing, Neighbour


class Board:
    """Flags in memory that several agents see."""

    def __init__(self) -> None:
        self.up: dict[str, str] = {}  # flag -> who has it up


class BoardFlag:
    def __init__(self, board: Board, name: str, who: str) -> None:
        self._board, self._name, self._who = board, name, who

    def take(self) -> bool:
        return self._board.up.setdefault(self._name, self._who) == self._who

    def drop(self) -> None:
        if self._board.up.get(self._name) == self._who:
            del self._board.up[self._name]

    def is_up_elsewhere(self) -> bool:
        return self._board.up.get(self._name, self._who) != self._who


def agents(board: Board, shares: dict[str, int]) -> dict[str, CpuSharing]:
    return {
        me: CpuSharing(
            own,
            BoardFlag(board, me, me),
            [
                Neighbour(
                    BoardFlag(board, other, me),
                    [BoardFlag(board, f"{other}{i}", me) for i in range(count)],
                )
                for other, count in shares.items()
                if other != me
            ],
        )
        for me, own in shares.items()
    }


def test_one_who_works_alone_has_all_threads_and_gives_back_at_the_next_step() -> None:
    board = Board()
    pair = agents(board, {"llama": 2, "gemma": 3})
    pair["llama"].begin()
    assert pair["llama"].threads() == 5
    pair["gemma"].begin()
    # The owner need not wait: it has its own at once, and the borrower notices at its next step.
    assert pair["gemma"].threads() == 3
    assert pair["llama"].threads() == 2
    pair["gemma"].end()
    assert pair["llama"].threads() == 5
    pair["llama"].end()
    assert not board.up


def test_no_thread_is_lent_to_two() -> None:
    board = Board()
    three = agents(board, {"a": 1, "b": 1, "c": 2})
    three["a"].begin()
    three["b"].begin()
    assert (three["a"].threads(), three["b"].threads()) == (3, 1)
    three["a"].end()
    assert three["b"].threads() == 4
    three["a"].begin()
    assert three["b"].threads() == 3
    assert three["a"].threads() == 1
    # All that work together never use more than there are, once each has had a step.
    three["c"].begin()
    for agent in three.values():
        agent.threads()
    assert sum(agent.threads() for agent in three.values()) == 4


def test_a_flag_that_could_not_be_put_up_is_tried_again() -> None:
    board = Board()
    pair = agents(board, {"a": 1, "b": 1})
    board.up["a"] = "somebody who looks"
    pair["a"].begin()
    del board.up["a"]
    pair["a"].threads()
    pair["b"].begin()
    assert pair["b"].threads() == 1


# -- a machine that others use, too -------------------------------------------------------------


class Clocks:
    """Wall and processor time of an agent whose threads get this share of their cores."""

    def __init__(self) -> None:
        self.now = self.used = 0.0

    def step(self, lending: CpuSharing, share: float) -> int:
        threads = lending.threads()
        self.now += 0.02
        self.used += 0.02 * threads * share
        return threads


def alone(clocks: Clocks) -> CpuSharing:
    board = Board()
    neighbour = Neighbour(BoardFlag(board, "b", "a"), [BoardFlag(board, "b0", "a")])
    return CpuSharing(
        1,
        BoardFlag(board, "a", "a"),
        [neighbour],
        clock=lambda: clocks.now,
        used=lambda: clocks.used,
    )


def test_on_a_crowded_machine_nothing_is_borrowed_for_a_while() -> None:
    clocks = Clocks()
    lending = alone(clocks)
    lending.begin()
    assert {clocks.step(lending, 1.0) for _ in range(100)} == {2}
    crowded = [clocks.step(lending, 0.4) for _ in range(2000)]
    assert crowded[:2] == [2, 2]
    # It tries again ever more rarely: after 1, 2, 4, 8, 16 seconds.
    assert 20 < crowded.count(2) < 60
    assert 1 in crowded[:20] and 2 in crowded[50:80] and 2 not in crowded[1200:1500]
    recovered = [clocks.step(lending, 1.0) for _ in range(2000)]
    assert recovered[-500:] == [2] * 500


def test_time_without_work_is_no_crowd() -> None:
    clocks = Clocks()
    lending = alone(clocks)
    for _ in range(50):
        lending.begin()
        assert [clocks.step(lending, 1.0) for _ in range(3)] == [2, 2, 2]
        lending.end()
        clocks.now += 5.0


# -- files ------------------------------------------------------------------------------------


def test_files_are_flags(tmp_path: Path) -> None:
    mine, yours = FileFlag(tmp_path / "f"), FileFlag(tmp_path / "f")
    assert not yours.is_up_elsewhere()
    assert mine.take() and mine.take()
    assert yours.is_up_elsewhere() and not yours.take() and not mine.is_up_elsewhere()
    yours.drop()  # not up here: nothing happens
    assert not yours.take()
    mine.drop()
    assert not yours.is_up_elsewhere() and yours.take()
    assert (tmp_path / "f").stat().st_mode & 0o077 == 0


HOLD = """
import sys, time
from pathlib import Path
from agentwire.agent.cpu_flags import lending_in
lending = lending_in(Path(sys.argv[1]), "b", {"a": 1, "b": 1})
lending.begin()
print(lending.threads(), flush=True)
time.sleep(600)
"""


def test_the_threads_of_an_agent_that_died_are_idle(tmp_path: Path) -> None:
    shares = {"a": 1, "b": 1}
    lending = lending_in(tmp_path, "a", shares)
    assert lending is not None
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "2\n"  # nobody else works: it has borrowed ours
        lending.begin()
        assert lending.threads() == 1
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert lending.threads() == 2
    finally:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()


@pytest.mark.parametrize(
    ("name", "shares"), [("a", {}), ("a", {"a": 1}), ("c", {"a": 1, "b": 1})], ids=str
)
def test_nobody_to_lend_to(tmp_path: Path, name: str, shares: dict[str, int]) -> None:
    assert lending_in(tmp_path, name, shares) is None


def test_without_a_folder_there_is_no_lending(tmp_path: Path) -> None:
    assert lending_in(tmp_path / "gone", "a", {"a": 1, "b": 1}) is None
