"""Fixtures for several test folders, and the time limit of each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from patience import TEST_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_S))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama model with a chat template (tests/tiny.py)."""
    import tiny

    return tiny.build_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Gemma 3 model without a chat template (tests/tiny.py)."""
    import tiny

    return tiny.build_gemma(tmp_path_factory.mktemp("models") / "tiny-gemma")
