"""Fixtures that several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama that has a chat template (tests/tiny.py)."""
    import tiny

    return tiny.build_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Gemma 3 without a chat template (tests/tiny.py)."""
    import tiny

    return tiny.build_gemma(tmp_path_factory.mktemp("models") / "tiny-gemma")
