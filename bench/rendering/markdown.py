"""Pieces of Markdown that every chapter uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]
"""The content of one file of ``bench/results/``."""
Records = Mapping[str, Record]
"""Records by the stem of their file."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(record: Record) -> list[str]:
    """What every record must say about itself, as list items.

    Raises:
        KeyError: the record lacks its hardware, versions, start or command.
    """
    hardware = record["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        f"- hardware: {hardware if isinstance(hardware, str) else described(hardware)}",
        f"- versions: {versions}",
        f"- date: {record['started'][:10]}; command: `{record['command']}`",
    ]


def described(facts: Mapping[str, Any]) -> str:
    """A mapping in one line, empty values left out; of a list its items, alike ones counted."""
    return ", ".join(f"{key} {_item(value)}" for key, value in facts.items() if value)


def _item(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    counts = Counter(map(str, value))
    return " + ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())


def replaced(text: str, begin: str, end: str, made: str) -> str:
    """A text with what stands between two marking lines replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed) or begin in after or end in after:
        raise ValueError(f"the lines {begin} and {end} are needed, once each")
    return f"{before}{begin}\n\n{made}\n\n{end}{after}"
