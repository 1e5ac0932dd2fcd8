"""Plots payloads as a t-SNE map in two dimensions: one dot per text, coloured by class (PNG).

Needs the extra ``agentwire[inspect]`` (scikit-learn, matplotlib).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

FEWEST = 5
"""Fewest texts that can be mapped."""
PERPLEXITY = 30.0
MOST_IN_LEGEND = 10
"""Most classes that the legend names; more are distinguished by colour only."""


def project(payloads: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Payloads [n, M * d] as points [n, 2].

    L. van der Maaten and G. Hinton, "Visualizing Data using t-SNE", JMLR 9 (2008), by scikit-learn:
    cosine distances, PCA initialisation, perplexity 30 or a third of the number of texts. Distances
    between clusters and the sizes of clusters have no meaning.
    """
    from sklearn.manifold import TSNE

    n = len(payloads)
    if n < FEWEST:
        raise ValueError(f"a map needs at least {FEWEST} payloads, got {n}")
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    model = TSNE(n_components=2, perplexity=perplexity, metric="cosine", init="pca", random_state=0)
    points: npt.NDArray[np.float32] = model.fit_transform(payloads)
    return points


def draw(
    points: npt.NDArray[np.float32],
    classes: Sequence[int],
    names: Sequence[str],
    title: str,
    file: Path,
) -> None:
    """Writes the map of points [n, 2] as PNG; ``classes`` are indices into ``names``."""
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
