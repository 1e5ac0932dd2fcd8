"""docs/results.md says what the records say, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_document_is_what_the_records_give() -> None:
    call = [sys.executable, str(ROOT / "bench" / "render.py"), "--check"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python bench/render.py`\n{done.stderr}"
