"""Progress of a training for people: figures at every evaluation, the time left in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from agentwire.download import OnProgress
from agentwire.training.curve import sparkline

if TYPE_CHECKING:
    from agentwire.training.loop import Evaluation

REPORT_EVERY_S = 20.0
BEGIN = 0.28
"""Fraction of the whole job that is done when the first step begins."""


def within(progress: OnProgress, what: str, begin: float, share: float) -> OnProgress:
    """Progress of the part ``what``: it starts at ``begin`` and is ``share`` of the whole."""
    return lambda stage, done: progress(f"{what}: {stage}", begin + share * done)


class TimeLeft:
    """Estimates how long a training of ``steps`` steps will still take."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.began = self.reported = time.monotonic()
        self.first: int | None = None

    def stepped(self, number: int) -> str:
        """Call after every step. Returns a message every ``REPORT_EVERY_S``, otherwise ""."""
        if self.first is None:  # an earlier session may have done steps
            self.first, self.began = number, time.monotonic()
            return ""
        now = time.monotonic()
        if now - self.reported < REPORT_EVERY_S:
            return ""
        self.reported = now
        left = (now - self.began) / (number - self.first) * (self.steps - number)
        return f"{number:,} of {self.steps:,} steps, about {duration(left)} left"


class TrainingReport:
    """Reports the progress of bridges that train side by side.

    Args:
        bridges: how many train now.
        before: how many of the same call are trained already.
        total: how many the call trains.
    """

    def __init__(
        self, progress: OnProgress, bridges: int, steps: int, before: int = 0, total: int = 1
    ) -> None:
        self.progress, self.bridges, self.steps = progress, bridges, steps
        self.before, self.total = before, total
        self.losses: list[float] = []
        self.time_left = TimeLeft(steps)

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        """Reports the means over the bridges that still train."""
        step = evaluations[0].step
        self.losses.append(fmean(e.train_loss for e in evaluations))
        accuracy = fmean(e.accuracy for e in evaluations)
        self._report(
            f"step {step}: loss {self.losses[-1]:.3f} {sparkline(self.losses)}, "
            f"held-out {accuracy:.3f}{self._which()}",
            step,
        )

    def stepped(self, number: int) -> None:
        """Call after every step; reports the time left now and then."""
        message = self.time_left.stepped(number)
        if message:
            self._report(f"{message}{self._which()}", number)

    def _which(self) -> str:
        if self.total == 1:
            return ""
        first, last = self.before + 1, self.before + self.bridges
        which = f"bridge {first}" if first == last else f"bridges {first} to {last}"
        return f" ({which} of {self.total})"

    def _report(self, text: str, step: int) -> None:
        done = (self.before + self.bridges * step / self.steps) / self.total
        self.progress(text, BEGIN + (1 - BEGIN) * done)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
