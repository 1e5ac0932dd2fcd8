"""The bridge against another method on the same rows: who has won, and names for people."""

from __future__ import annotations

from rendering.markdown import Record

TITLES = {
    "sst2": "SST-2",
    "ag_news": "AG News",
    "trec": "TREC",
    "banking77": "Banking77",
    "movie_snippets": "movie snippets",
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
