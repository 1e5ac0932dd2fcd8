"""A warm ``send`` passes few functions and files (bench/trace_send.py counts them)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "trace_send.py"
MOST_CODE_OBJECTS, MOST_FILES = 300, 25

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="later versions give lower figures"),
]


def test_a_warm_send_enters_few_code_objects_in_few_files() -> None:
    # In a process of its own, because it sets a profile function for all threads.
    call = [sys.executable, str(BENCH), "--requests", "5", "--list"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"total: (\d+) code objects \(\d+ distinct\) in (\d+) files", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) <= MOST_CODE_OBJECTS, done.stdout
    assert int(found[2]) <= MOST_FILES, done.stdout
