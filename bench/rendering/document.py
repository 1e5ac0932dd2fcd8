"""The whole document: which chapters there are, and which records each one gets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Protocol

from rendering import (
    accuracy,
    aims,
    bus,
    embedding,
    endurance,
    engines,
    fan_in,
    faults,
    figures,
    runs,
    scaling,
    speed,
    training,
)
from rendering.markdown import Record, Records

HEAD = """# Results

Made by `python bench/render.py` from the records in `bench/results/`; do not edit.

Every accuracy below was measured with **stand-ins** (small models, and where named stand-in data)
on the hardware named beside it; none with Llama-3.1-8B and Mistral-7B. Where a chapter of speed
names those two, it measured their exact shapes with random weights: how fast, not how well.
Accuracies are fractions with 95 % Wilson intervals; times are milliseconds.
"""


class Chapter(Protocol):
    """What a module of this package offers to become a chapter."""

    def owns(self, name: str, record: Record, /) -> bool:
        """Whether the record is of this chapter's kind."""

    def chapter(self, records: Records, /) -> str:
        """Markdown of this chapter's records."""


CHAPTERS: tuple[Chapter, ...] = (
    accuracy,
    fan_in,
    runs,
    speed,
    training,
    bus,
    scaling,
    embedding,
    engines,
    faults,
    endurance,
    figures,
)
"""In the order of the document; the first that owns a record gets it, ``figures`` the rest."""


def read_records(folder: Path) -> dict[str, Record]:
    """Every record of a folder, ordered by name."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def document(records: Records) -> str:
    """The whole document; a chapter without records is left out.

    Raises:
        ValueError: a record that no chapter owns: it would be missing without a word.
    """
    shares: list[dict[str, Record]] = [{} for _ in CHAPTERS]
    for name, record in records.items():
        owners = (i for i, chapter in enumerate(CHAPTERS) if chapter.owns(name, record))
        owner = next(owners, None)
        if owner is None:
            raise ValueError(f"no chapter of bench/rendering knows the record {name}.json")
        shares[owner][name] = record
    parts = [c.chapter(share) for c, share in zip(CHAPTERS, shares, strict=True) if share]
    parts = [part.strip() for part in (aims.section(records), *parts) if part]
    return "\n\n".join([HEAD.strip(), contents(parts), *parts]).strip() + "\n"


def contents(parts: list[str]) -> str:
    """A list of the chapters' titles, each a link to its chapter; "" where there are none."""
    titles = [
        line.removeprefix("## ")
        for part in parts
        for line in part.splitlines()
        if line.startswith("## ")
    ]
    return "\n".join(f"- [{title}](#{anchor(title)})" for title in titles)


def anchor(title: str) -> str:
    """What a heading is called in a link: as the common renderers of Markdown make it."""
    kept = re.sub(r"[^\w\- ]", "", title.lower())
    return kept.replace(" ", "-")
