"""A map of payloads: t-SNE in two dimensions, one dot a text, coloured by class (PNG).

Needs the extra ``agentwire[inspect]`` (scikit-learn, matplotlib); both are imported when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

FEWEST = 5
"""Texts without which there is nothing to map."""
PERPLEXITY = 30.0
MOST_IN_LEGEND = 10
"""Classes that a legend can name; more are told apart by colour only."""


def project(payloads: npt.NDArray[np.float32], seed: int = 0) -> npt.NDArray[np.float32]:
    """Payloads [n, M * d] as points [n, 2].

    L. van der Maaten and G. Hinton, "Visualizing Data using t-SNE", JMLR 9 (2008), as scikit-learn
    has it: cosine distances, PCA start, perplexity 30 or a third of the texts where those are few.
    Distances between clusters and their sizes mean nothing.

    Raises:
        ValueError: fewer than ``FEWEST`` payloads.
    """
    from sklearn.manifold import TSNE

    n = len(payloads)
    if n < FEWEST:
        raise ValueError(f"{n} payloads are too few for a map; {FEWEST} are the fewest")
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    model = TSNE(
        n_components=2, perplexity=perplexity, metric="cosine", init="pca", random_state=seed
    )
    points: npt.NDArray[np.float32] = model.fit_transform(payloads)
    return points


def draw(
    points: npt.NDArray[np.float32],
    classes: Sequence[int],
    names: Sequence[str],
    title: str,
    file: Path,
) -> None:
    """Writes the map as PNG.

    Args:
        points: [n, 2].
        classes: of each point, counting into ``names``.
        title: says which bridge and rows these are.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = colormaps["tab10" if len(names) <= MOST_IN_LEGEND else "nipy_spectral"]
    found = np.asarray(classes)
    for number, name in enumerate(names):
        here = points[found == number]
        if len(here):
            colour = colours(number if len(names) <= MOST_IN_LEGEND else number / len(names))
            axes.scatter(here[:, 0], here[:, 1], s=14, color=colour, label=name, linewidths=0)
    if len(names) <= MOST_IN_LEGEND:
        axes.legend(fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.savefig(file, format="png")
