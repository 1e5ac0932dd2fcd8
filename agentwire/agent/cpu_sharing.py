"""CPU sharing: an agent uses the threads of idle agents on the same machine.

Agents coordinate through file locks in the run's folder:

* An agent that computes holds its ``busy`` lock.
* Each of its threads has a lock, which an agent that borrows the thread holds.
* A borrower asks again at every step and returns the threads once their owner is busy. Until then
  both run on those cores for the rest of one step. The owner never waits.
* Where other programs keep the cores busy, threads that compute together wait for each other. An
  agent that gets much less processor time than its threads should get borrows nothing for a while.

The kernel releases the locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # not on Windows: agents keep to their own threads there
    fcntl = None  # type: ignore[assignment]

SAMPLE_S: Final = 0.1
"""Processor time is compared with wall time over at least this long."""
FAIR_SHARE: Final = 0.8
"""Least processor time per thread and second; below it, two threads are hardly faster than one."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


class FileLock:
    """A ``flock(2)`` lock whose methods never block. The file's folder must be private."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held = False

    def acquire(self) -> bool:
        """Takes or keeps the lock; False if another agent holds it."""
        if not self._held:
            self._held = self._try(fcntl.LOCK_EX)
        return self._held

    def release(self) -> None:
        if self._held:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._held = False

    def held_elsewhere(self) -> bool:
        # A shared lock, so that several agents can check at once. An owner whose ``acquire`` fails
        # meanwhile tries again at its next step.
        if self._held:
            return False
        if not self._try(fcntl.LOCK_SH):
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Lender:
    """Another agent on the same machine: its ``busy`` lock and one lock per thread."""

    busy: FileLock
    threads: Sequence[FileLock]


class ContentionMonitor:
    """Detects that other programs compete for the cores of borrowed threads.

    Threads of one computation wait for each other busily, so on free cores they use all their time.
    """

    def __init__(self) -> None:
        self._threads = 0
        self._since = self._used = 0.0
        self._pause = FIRST_PAUSE_S
        self._paused_until = float("-inf")

    def is_contended(self, now: float) -> bool:
        """Whether to borrow nothing now (monotonic seconds)."""
        return now < self._paused_until

    def sample(self, now: float, used: float, threads: int) -> None:
        """Records the processor time used until now by ``threads``."""
        if threads != self._threads:
            self._threads, self._since, self._used = threads, now, used
        elif now - self._since >= SAMPLE_S:
            share = (used - self._used) / ((now - self._since) * threads)
            if share < FAIR_SHARE:
                self._paused_until = now + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
                self.reset()
            else:
                self._pause = FIRST_PAUSE_S
                self._since, self._used = now, used

    def reset(self) -> None:
        """Forgets the sample under way: the agent borrows nothing or is idle."""
        self._threads = 0


class CpuSharing:
    """One agent's side.

    Args:
        own: number of its own threads.
        busy: its lock.
        clock: monotonic seconds.
        used: processor time of this process, in seconds.
    """

    def __init__(
        self,
        own: int,
        busy: FileLock,
        lenders: Sequence[Lender],
        *,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._own = own
        self._busy = busy
        self._lenders = lenders
        self._clock = clock
        self._used = used
        self._contention = ContentionMonitor()

    def begin(self) -> None:
        """The agent starts to compute."""
        self._busy.acquire()

    def threads(self) -> int:
        """How many threads to use for the next step. Ask before every step."""
        self._busy.acquire()  # again, in case another agent was just checking it
        now = self._clock()
        if self._contention.is_contended(now):
            self._return_threads()
            return self._own
        borrowed = sum(self._borrow(lender) for lender in self._lenders)
        if borrowed:
            self._contention.sample(now, self._used(), self._own + borrowed)
        else:
            self._contention.reset()
        return self._own + borrowed

    def end(self) -> None:
        """The agent is idle."""
        self._contention.reset()
        self._return_threads()
        self._busy.release()

    def _return_threads(self) -> None:
        for lender in self._lenders:
            for thread in lender.threads:
                thread.release()

    def _borrow(self, lender: Lender) -> int:
        # Threads first, then the check: of two borrowers only one gets to check, and an owner that
        # becomes busy after the check is seen at the next step.
        taken = [thread for thread in lender.threads if thread.acquire()]
        if taken and lender.busy.held_elsewhere():
            for thread in taken:
                thread.release()
            return 0
        return len(taken)


def open_cpu_sharing(folder: Path, name: str, shares: Mapping[str, int]) -> CpuSharing | None:
    """The CPU sharing of one agent; None if it shares with nobody or the system has no file locks.

    Args:
        folder: private to this run, on this machine.
        name: the agent's.
        shares: threads of each agent that takes part, this one among them.
    """
    if fcntl is None or name not in shares or len(shares) < 2 or not folder.is_dir():
        return None

    def lock(agent: str, what: str) -> FileLock:
        return FileLock(folder / f"{agent}.{what}.lock")

    with contextlib.suppress(OSError):
        return CpuSharing(
            shares[name],
            lock(name, "busy"),
            [
                Lender(lock(other, "busy"), [lock(other, f"thread{i}") for i in range(count)])
                for other, count in shares.items()
                if other != name
            ],
        )
    return None
