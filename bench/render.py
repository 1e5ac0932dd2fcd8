"""docs/results.md, its pictures, parts of README and of other pages, from the records.

``--check`` compares the texts only; ``--no-pictures`` leaves the pictures as they are.

Every table names the command, hardware, models, data, seed and date of its record; no figure in the
document is written by hand. The chapters are modules of ``bench/rendering``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rendering import accuracy, pages, readme, speed
from rendering.document import document, read_records

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "results.md"
README = ROOT / "README.md"


def main() -> int:
    """Writes them; with ``--check``, exits with 1 where one is not what would be written."""
    records = read_records(RECORDS)
    check = "--check" in sys.argv[1:]
    if not check and "--no-pictures" not in sys.argv[1:]:
        speed.draw(records)
        accuracy.draw(records, DOCUMENT.parent / "figures")
    wanted = {
        DOCUMENT: document(records),
        README: readme.renewed(README.read_text(encoding="utf-8"), records),
    }
    for page in pages.PARTS:
        file = ROOT / page
        wanted[file] = pages.renewed(page, file.read_text(encoding="utf-8"), records)
    if check:
        old = [f for f, text in wanted.items() if not f.is_file() or f.read_text("utf-8") != text]
        print(*(f"{file.name} is not what the records give" for file in old), file=sys.stderr)
        return 1 if old else 0
    for file, text in wanted.items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
