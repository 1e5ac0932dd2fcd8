"""Chooses rows for the inspection of a bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentwire.bridge.card import BridgeCard
from agentwire.config import Config
from agentwire.errors import DataError
from agentwire.evaluation.predictions import choose_rows
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import definitions, load_classification

SPLITS = ("test", "validation", "sample")
"""Splits to take rows from, in this order; never the one that the bridge was trained on."""


@dataclass(frozen=True, slots=True)
class InspectedRows:
    """Texts for inspection."""

    texts: list[str]
    labels: list[str]  # of each text, for people
    classes: list[int]  # of each text, as index into ``names``
    names: tuple[str, ...]  # classes of the dataset; of several datasets, their names
    provenance: dict[str, Any]


def choose(card: BridgeCard, name: str | None, config: Config, n: int) -> InspectedRows:
    """Rows of the bridge's datasets, or of the named one, that the bridge was not trained on.

    Of several datasets, each gives as many rows. All tasks of a series have the same texts, so the
    first represents them. Raises DataError if none of the datasets is here.
    """
    if name is not None:
        load_classification(name)
    wanted = [name] if name is not None else _datasets(card.training.dataset)
    found = [data for dataset in wanted if (data := _unseen(dataset, config)) is not None]
    if not found:
        raise DataError(
            f"Only training rows of {', '.join(wanted)} are here.",
            hint="Use --dataset (see `agentwire data list`), or --text with --rows 0.",
        )
    each = -(-n // len(found))
    rows = [
        (number, data, data.rows[i])
        for number, data in enumerate(found)
        for i in choose_rows(len(data), each, seed=0)
    ]
    texts = [row.text for _, _, row in rows]
    labels = [data.labels[row.label] for _, data, row in rows]
    if len(found) == 1:
        (data,) = found
        classes = [row.label for _, _, row in rows]
        provenance = {"name": data.name, "split": data.split, **data.provenance}
        return InspectedRows(texts, labels, classes, data.labels, provenance)
    return InspectedRows(
        texts=texts,
        labels=[f"{row[1].name}: {label}" for row, label in zip(rows, labels, strict=True)],
        classes=[number for number, _, _ in rows],
        names=tuple(data.name for data in found),
        provenance={
            "name": "+".join(data.name for data in found),
            "split": "+".join(dict.fromkeys(data.split for data in found)),
            "parts": {data.name: {"split": data.split, **data.provenance} for data in found},
        },
    )


def _unseen(dataset: str, config: Config) -> Dataset | None:
    """A split that no bridge trains on; None if none is here."""
    for split in SPLITS:
        try:
            load_classification(dataset)
            return load_rows(dataset, split, config=config)
        except DataError:
            continue
    return None


def _datasets(trained_on: str) -> list[str]:
    """The datasets that a card names: ``a``, several as ``a+b``, or a series."""
    series = [name for name, task in definitions().items() if task.series == trained_on]
    return series[:1] or trained_on.split("+")
