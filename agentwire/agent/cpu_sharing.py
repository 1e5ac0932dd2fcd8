"""Which CPU threads an agent may use now: its own, and those of agents that have nothing to do.

A pure policy over flags that agents show each other; ``flags`` makes them of files.

* An agent that works shows its flag.
* Each of its threads has a flag of its own, held by whoever borrowed it, so nobody else does.
* A borrower asks again at every step of its work, and gives back as soon as the owner works. Until
  then both are on that core for the rest of a step, which the owner need not wait for.
* Where other programs keep the cores busy, threads wait for each other instead of working. So who
  gets much less processor time than its threads should have borrows nothing for a while.

An agent that dies has no flags up: its threads are idle, and what it borrowed is free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

LOOK_S: Final = 0.1
"""Over so long it is seen what processor time the threads get."""
FAIR_SHARE: Final = 0.8
"""Of its threads' time: with less, two threads are hardly faster than one."""
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


class Flag(Protocol):
    """One flag that several agents see. None of these waits."""

    def take(self) -> bool:
        """Puts it up, or keeps it up; False: somebody else has it up."""
        ...

    def drop(self) -> None:
        """Takes it down, if it is up here."""
        ...

    def is_up_elsewhere(self) -> bool:
        """Whether somebody else has it up."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another agent on the same machine.

    Attributes:
        works: up while it works.
        threads: up while somebody borrows that thread.
    """

    works: Flag
    threads: Sequence[Flag]


class Crowd:
    """Whether other programs leave borrowed threads too little of their cores.

    Threads of one computation wait for each other busily, so on cores of their own they use all of
    their time.
    """

    def __init__(self) -> None:
        self._threads = 0
        self._since = self._used = 0.0
        self._pause = PAUSE_S
        self._until = float("-inf")

    def too_dense(self, now: float) -> bool:
        """Whether nothing should be borrowed now (monotonic seconds)."""
        return now < self._until

    def look(self, now: float, used: float, threads: int) -> None:
        """What was used by now: seconds of processor time, with so many threads since last time."""
        if threads != self._threads:
            self.leave()
            self._threads, self._since, self._used = threads, now, used
        elif now - self._since >= LOOK_S:
            share = (used - self._used) / ((now - self._since) * threads)
            if share < FAIR_SHARE:
                self._until = now + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
                self.leave()
            else:
                self._pause = PAUSE_S
                self._since, self._used = now, used

    def leave(self) -> None:
        """The agent borrows nothing, or does not work."""
        self._threads = 0


class CpuSharing:
    """One agent's side.

    Args:
        own: threads of its own.
        works: its flag.
        neighbours: the others.
        clock: monotonic seconds.
        used: seconds of processor time that this process has used.
    """

    def __init__(
        self,
        own: int,
        works: Flag,
        neighbours: Sequence[Neighbour],
        *,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._own = own
        self._works = works
        self._neighbours = neighbours
        self._clock = clock
        self._used = used
        self._crowd = Crowd()

    def begin(self) -> None:
        """The agent starts to work."""
        self._works.take()

    def threads(self) -> int:
        """How many it may use for the next step; asked again at each."""
        self._works.take()  # again, in case somebody was just looking
        now = self._clock()
        if self._crowd.too_dense(now):
            self._give_back()
            return self._own
        borrowed = sum(self._borrowed(neighbour) for neighbour in self._neighbours)
        if borrowed:
            self._crowd.look(now, self._used(), self._own + borrowed)
        else:
            self._crowd.leave()
        return self._own + borrowed

    def end(self) -> None:
        """The agent has nothing to do."""
        self._crowd.leave()
        self._give_back()
        self._works.drop()

    def _give_back(self) -> None:
        for neighbour in self._neighbours:
            for thread in neighbour.threads:
                thread.drop()

    def _borrowed(self, neighbour: Neighbour) -> int:
        # First the thread, then the look: of two borrowers only one looks, and the owner's flag
        # that goes up after the look is seen at the next step.
        taken = [thread for thread in neighbour.threads if thread.take()]
        if taken and neighbour.works.is_up_elsewhere():
            for thread in taken:
                thread.drop()
            return 0
        return len(taken)
