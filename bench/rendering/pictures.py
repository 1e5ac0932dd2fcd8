"""Line pictures as SVG and PNG (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLOURS = ("#4053d3", "#00a878", "#b04bd6", "#d1495b")
GREY = "#9a9a9a"


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        points: (x, accuracy, half of the 95 % interval).
        reported: by a paper, not measured here; drawn grey and dashed.
    """

    label: str
    points: Sequence[tuple[float, float, float]]
    reported: bool = False


def draw_lines(
    lines: Sequence[Line], stem: Path, *, title: str, x: str, doubling: bool = False
) -> list[Path]:
    """Write ``stem``.svg and ``stem``.png; the same lines give the same files.

    Args:
        x: name of the horizontal axis.
        doubling: use a logarithmic axis with base 2.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = stem.name
    figure = Figure(figsize=(7.5, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = iter(COLOURS * len(lines))
    for line in lines:
        places, values, margins = zip(*line.points, strict=True)
        axes.errorbar(
            places,
            values,
            yerr=None if line.reported else margins,
            label=line.label,
            color=GREY if line.reported else next(colours),
            linestyle="--" if line.reported else "-",
            marker="o",
            capsize=3,
        )
    axes.set(title=title, xlabel=x, ylabel="accuracy", ylim=(0, 1))
    if doubling:
        every = sorted({point[0] for line in lines for point in line.points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [f"{place:g}" for place in every])
    axes.grid(alpha=0.3)
    axes.legend()
    stem.parent.mkdir(parents=True, exist_ok=True)
    made = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    figure.savefig(made[0], metadata={"Date": None})
    figure.savefig(made[1])
    return made
