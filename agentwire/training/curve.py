"""Plots the loss of a training: one line in a terminal, or a PNG (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentwire.errors import InputError

if TYPE_CHECKING:
    from agentwire.training.loop import Evaluation

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Characters of the line in the terminal."""


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The last ``width`` values as bars, scaled to their own minimum and maximum."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((v - low) / (high - low) * (len(BARS) - 1))] for v in shown)


def require_plots() -> None:
    """Checks for matplotlib before anything is trained.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "a loss curve needs matplotlib, which is not installed.",
            hint="Run `pip install 'agentwire[plots]'`, or omit --plot.",
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
