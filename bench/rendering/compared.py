"""The bridge against another method on the same rows: who has won, and names for people."""

from __future__ import annotations

from rendering.markdown import Record
from rendering.sample import Sample

TITLES = {
    "sst2": "SST-2",
    "ag_news": "AG News",
    "trec": "TREC",
    "banking77": "Banking77",
    "movie_snippets": "movie snippets",
    "subj": "Subj",
    "emotion_as_sentiment": "emotion as sentiment",
}
DASH = "–"


def title(task: str) -> str:
    """A task's name for people."""
    return TITLES.get(task, task)


def figure(value: object, digits: int = 3) -> str:
    """A fraction, or a dash where there is none."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else DASH


def outcome(entry: Record) -> str:
    """``bridge``, ``baseline``, or ``""``: they cannot be told apart.

    The bridge has won only where both tests say so; against it, the interval is enough.
    """
    certain = entry.get("mcnemar", {}).get("p_value", 0.0) < 0.05
    if entry["low95"] > 0 and certain:
        return "bridge"
    return "baseline" if entry["high95"] < 0 else ""


def single(record: Record, task: str, direction: str) -> Sample | None:
    """The main table's figure of the task's own bridge."""
    figures, name = record["figures"], f"{task}.{direction}.bridge"
    seeds = [figures[f"{name}.seed{k}"] for k in range(100) if f"{name}.seed{k}" in figures]
    values = seeds or [figures[f"{name}.mean"]] if f"{name}.mean" in figures else []
    return Sample(tuple(values), int(figures.get(f"{name}.n", 0))) if values else None


def paired(record: Record, task: str, direction: str, study: str) -> Record | None:
    """A study's bridge minus the task's own of the main table, row by row."""
    for entry in record.get("studies", {}).get(f"{study}_minus_bridge", []):
        if (entry["task"], entry["direction"]) == (task, direction):
            return dict(entry)
    return None
