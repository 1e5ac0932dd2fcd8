"""docs/results.md and its pictures from the records: ``python bench/render.py``.

``--check`` compares the document only; ``--no-pictures`` leaves the pictures as they are.

Every table names the command, hardware, models, data, seed and date of its record; no figure in the
document is written by hand. The chapters are modules of ``bench/rendering``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rendering import accuracy, speed
from rendering.document import document, read_records

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "results.md"


def main() -> int:
    """Writes the document; with ``--check``, exits with 1 where it is not what would be written."""
    records = read_records(RECORDS)
    check = "--check" in sys.argv[1:]
    if not check and "--no-pictures" not in sys.argv[1:]:
        speed.draw(records)
        accuracy.draw(records, DOCUMENT.parent / "figures")
    text = document(records)
    if check:
        return 0 if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text else 1
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
