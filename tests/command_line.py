"""The command line in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from patience import COMMAND_S

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agentwire", *arguments]


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a user whose cache, data and bridges are in this folder only."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AGENTWIRE_HOME": str(folder / "home")}
    for name in ("AGENTWIRE_DATA", "AGENTWIRE_BRIDGES"):
        env.pop(name, None)
    return {**env, "OMP_NUM_THREADS": "1", **changes}


def agentwire(
    folder: Path, *arguments: str, code: int = 0, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in this folder; ``code`` is the exit status that it must have."""
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done
