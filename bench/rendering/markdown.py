"""Markdown tables, number formats, and the source line of a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]
"""The content of one file of ``bench/results/``."""
Records = Mapping[str, Record]
"""Records by the stem of their file."""

DASH = "–"
TITLES = {
    "sst2": "SST-2",
    "ag_news": "AG News",
    "trec": "TREC",
    "banking77": "Banking77",
    "movie_snippets": "movie snippets",
    "subj": "Subj",
    "emotion_as_sentiment": "emotion as sentiment",
}
"""Names of tasks for people."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def task_title(task: str) -> str:
    return TITLES.get(task, task)


def fraction(value: Any) -> str:
    """Three digits, or a dash for None."""
    return f"{value:.3f}" if isinstance(value, int | float) else DASH


def number(value: float | None) -> str:
    """About three digits, or a dash for None."""
    if value is None:
        return DASH
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def flat(value: Any) -> str:
    """A figure of a flat map: four digits of a float, separators in a count."""
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def source(record: Record, name: str, *path: str) -> str:
    """When, how, where and under which conditions a record, or a part of it, was measured.

    Args:
        name: of the record's file.
        path: keys that lead to the part.

    Raises:
        KeyError: the record lacks its start, command or hardware.
    """
    part = record
    for key in path:
        part = part[key]
    hardware = part.get("hardware") or record["hardware"]
    where = hardware if isinstance(hardware, str) else _described(hardware)
    line = (
        f"Record: `bench/results/{name}.json`, {part['started'][:10]}, "
        f"`{part['command']}`, on {where}."
    )
    labels = part.get("labels", [])
    return "\n\n".join([line, *(["\n".join(f"- {label}" for label in labels)] if labels else [])])


def _described(hardware: Mapping[str, Any]) -> str:
    gpus = Counter(hardware.get("gpus", []))
    devices = [f"{count} x {gpu}" for gpu, count in gpus.items()]
    devices.append(f"{hardware['cores']} cores of {hardware['cpu']}")
    return ", ".join([*devices, f"{hardware['memory_gb']:.0f} GB"])
