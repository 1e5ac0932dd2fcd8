"""The tables of README and docs/ are those that the records give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_table_is_what_its_record_gives() -> None:
    call = [sys.executable, str(ROOT / "bench" / "render.py"), "--check"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python bench/render.py`\n{done.stderr}"
