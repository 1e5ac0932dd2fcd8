"""Progress of a training for people: figures, the time left, and a plot of the loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from agentwire.download import OnProgress
from agentwire.errors import InputError

if TYPE_CHECKING:
    from agentwire.training.loop import Evaluation

REPORT_EVERY_S = 20.0
BEGIN = 0.28
"""Fraction of the whole job that is done when the first step begins."""

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Characters of the line in the terminal."""


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
    """Reports the progress of ``bridges`` that train side by side: after ``before`` others, of
    ``total`` in all."""

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


def sparkline(values: Sequence[float]) -> str:
    """The last ``WIDTH`` values as bars, scaled to their own minimum and maximum."""
    shown = list(values)[-WIDTH:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((v - low) / (high - low) * (len(BARS) - 1))] for v in shown)


def require_plots() -> None:
    """Raises InputError without matplotlib; called before anything is trained."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "a loss curve needs matplotlib, which is not installed.",
            hint="Run `pip install '.[plots]'`, or omit --plot.",
        ) from None


def draw_curve(history: Sequence[Evaluation], title: str, file: Path) -> None:
    """Writes a PNG of training loss, held-out loss and held-out accuracy over the steps."""
    require_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    losses = figure.add_subplot()
    steps = [e.step for e in history]
    losses.plot(steps, [e.train_loss for e in history], color="tab:gray", label="training loss")
    losses.plot(steps, [e.loss for e in history], color="tab:blue", label="held-out loss")
    losses.set(xlabel="step", ylabel="cross-entropy (nats)", title=title)
    accuracy = losses.twinx()
    accuracy.plot(
        steps, [e.accuracy for e in history], color="tab:green", label="held-out accuracy"
    )
    accuracy.set(ylabel="accuracy", ylim=(0, 1))
    lines = [*losses.get_lines(), *accuracy.get_lines()]
    losses.legend(lines, [str(line.get_label()) for line in lines], loc="center right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
