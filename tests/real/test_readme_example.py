"""README's Python example prints what README says that it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentwire.config import Config
from agentwire.model.sources.lookup import locate

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_prints_what_it_says() -> None:
    for model in ("smollm2-135m-instruct", "gemma-3-270m"):
        if not locate(model, config=Config.from_env()).present:
            pytest.skip(f"{model} is not in the cache (`agentwire models pull {model}`)")
    done = subprocess.run(
        [sys.executable, "-c", block("python")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == block("text")
