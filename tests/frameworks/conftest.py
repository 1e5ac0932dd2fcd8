"""Agents on the two small models, in real processes that all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from pair import ROOT, SCENARIO

from agentwire.adapters.local import LocalAgents

sys.path.insert(0, str(ROOT / "tests" / "integration"))


@pytest.fixture(scope="session")
def agents() -> Iterator[LocalAgents]:
    """llama -> mistral (or their stand-ins) with the shipped bridge."""
    with LocalAgents(SCENARIO) as started:
        yield started


@pytest.fixture(scope="module")
def fake_agents() -> Iterator[LocalAgents]:
    """The same wire on fake models, for tests that need a short handle lifetime."""
    from gateway_run import deployment

    with LocalAgents(deployment(), handle_ttl_s=1.0) as started:
        yield started
