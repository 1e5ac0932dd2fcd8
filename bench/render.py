"""Render the tables of README and docs/ from the records in bench/results.

A table stands between two markers on lines of their own. Everything between them is replaced:

    <!-- table: KIND RECORD [ARGUMENTS] -->
    <!-- /table -->

KIND is a key of ``TABLES`` in a module of bench/rendering; RECORD is a file of bench/results
without ``.json``. ``goals`` and ``machines`` read several records and take no argument. ``source
RECORD [KEYS]`` says when, how and where a record (or its part under these keys) was measured.

    python bench/render.py [--check] [--pictures]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rendering import accuracy, speed, studies, system
from rendering.markdown import Record, Records, source

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "bench" / "results"
FIGURES = ROOT / "docs" / "figures"
BEGIN, END = r"^(<!-- table: (.*) -->)$", r"^(<!-- /table -->)$"
MARKED = re.compile(rf"{BEGIN}(?s:.*?){END}", re.MULTILINE)
OF_ONE: dict[str, Callable[..., str]] = {
    **accuracy.TABLES,
    **studies.TABLES,
    **speed.TABLES,
    **system.TABLES,
}
OF_ALL: dict[str, Callable[[Records], str]] = {"goals": speed.goals, "machines": speed.machines}


def read_records(folder: Path) -> dict[str, Record]:
    """Every record of a folder by the stem of its file."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def rendered(name: str, records: Records) -> str:
    """What stands between the markers of a table.

    Raises:
        ValueError: there is no such kind of table or no such record.
    """
    kind, *arguments = name.split()
    if kind in OF_ALL:
        return OF_ALL[kind](records)
    stem, *arguments = arguments or [""]
    if stem not in records:
        raise ValueError(f"table {name!r}: there is no bench/results/{stem}.json")
    if kind == "source":
        return source(records[stem], stem, *arguments)
    if kind not in OF_ONE:
        raise ValueError(f"table {name!r}: unknown kind; known: {', '.join(sorted(OF_ONE))}")
    return OF_ONE[kind](records[stem], *arguments)


def renewed(text: str, records: Records) -> str:
    """A page with every table made again.

    Raises:
        ValueError: a marker is not closed, or a table cannot be made.
    """
    if len(re.findall(BEGIN, text, re.MULTILINE)) != len(re.findall(END, text, re.MULTILINE)):
        raise ValueError("every `<!-- table: … -->` needs one `<!-- /table -->`")
    return MARKED.sub(lambda found: f"{found[1]}\n{rendered(found[2], records)}\n{found[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the tables of README and docs/.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page is out of date")
    parser.add_argument("--pictures", action="store_true", help="draw docs/figures, too")
    args = parser.parse_args()
    records = read_records(RECORDS)
    outdated = False
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            new = renewed(text, records)
        except ValueError as error:
            sys.exit(f"{page.relative_to(ROOT)}: {error}")
        if new == text:
            continue
        if args.check:
            print(f"{page.relative_to(ROOT)} is not what the records give", file=sys.stderr)
            outdated = True
        else:
            page.write_text(new, encoding="utf-8")
    if args.pictures:
        speed.draw(records, FIGURES)
        studies.draw(records["accuracy-small"], FIGURES)
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
