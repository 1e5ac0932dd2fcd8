"""What a user is told while bridges train: figures at every evaluation, between them how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING

from agentwire.training.curve import sparkline

if TYPE_CHECKING:
    from agentwire.training.loop import Evaluation

TOLD_EVERY_S = 20.0
BEGIN = 0.28
"""Share of the whole that is done when the first step begins."""

Progress = Callable[[str, float], None]
"""Told the stage and the fraction done."""


def within(progress: Progress, what: str, begin: float, share: float) -> Progress:
    """Progress of a part, named ``what``, as a share of the whole that begins at ``begin``."""
    return lambda stage, done: progress(f"{what}: {stage}", begin + share * done)


class Pace:
    """How long a training will still take.

    Args:
        steps: of the whole training.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.began = self.told = time.monotonic()
        self.first: int | None = None

    def stepped(self, number: int) -> str:
        """Words for a user once in ``TOLD_EVERY_S``, else nothing; call it after every step."""
        if self.first is None:  # of this session: an earlier one may have done some
            self.first, self.began = number, time.monotonic()
            return ""
        now = time.monotonic()
        if now - self.told < TOLD_EVERY_S:
            return ""
        self.told = now
        left = (now - self.began) / (number - self.first) * (self.steps - number)
        return f"{number:,} of {self.steps:,} steps, about {duration(left)} left"


class Report:
    """The progress of bridges that train side by side.

    Args:
        progress: who is told.
        members: how many train.
        steps: of each.
        before: bridges of the same call that are trained already.
        total: bridges of the call.
    """

    def __init__(
        self, progress: Progress, members: int, steps: int, before: int = 0, total: int = 1
    ) -> None:
        self.progress, self.members, self.steps = progress, members, steps
        self.before, self.total = before, total
        self.losses: list[float] = []
        self.now: dict[int, Evaluation] = {}
        self.last = members - 1
        self.pace = Pace(steps)

    def evaluated(self, member: int, now: Evaluation) -> None:
        """One member's evaluation; told once for all of them, as means."""
        if any(other.step != now.step for other in self.now.values()):
            self.last = max(self.now)  # those after it have ended
            self.now.clear()
        self.now[member] = now
        if member < self.last:
            return
        self.losses.append(fmean(e.train_loss for e in self.now.values()))
        accuracy = fmean(e.accuracy for e in self.now.values())
        self._say(
            f"step {now.step}: loss {self.losses[-1]:.3f} {sparkline(self.losses)}, "
            f"held-out {accuracy:.3f}{self._whose()}",
            now.step,
        )

    def stepped(self, number: int) -> None:
        """A step is done; what is left is told now and then."""
        said = self.pace.stepped(number)
        if said:
            self._say(f"{said}{self._whose()}", number)

    def _whose(self) -> str:
        if self.total == 1:
            return ""
        first, last = self.before + 1, self.before + self.members
        some = f"bridge {first}" if first == last else f"bridges {first} to {last}"
        return f" ({some} of {self.total})"

    def _say(self, text: str, step: int) -> None:
        done = (self.before + self.members * step / self.steps) / self.total
        self.progress(text, BEGIN + (1 - BEGIN) * done)


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
