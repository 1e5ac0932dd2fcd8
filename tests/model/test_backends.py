"""The backend registry: what a scenario may name, and a backend of another package."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from agentwire.agent.service import load_backend
from agentwire.config import Config
from agentwire.errors import ModelError
from agentwire.model.fake import FakeBackend
from agentwire.scenario.inventory import Inventory
from agentwire.spec.agent import AgentSpec, FakeModel
from agentwire.spec.backends import BACKENDS, BackendKind, Library
from agentwire.spec.scenario import Agent

HINT = "Run `pip install echo`."


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> BackendKind:
    """A third-party backend."""
    kind = BackendKind(
        load=lambda spec, progress: FakeBackend(f"echo {spec.model}", FakeModel()),
        summary="an echo",
        needs_weights=False,
        library=Library("Echo", "no_such_echo_library", ("echo",), HINT),
    )
    monkeypatch.setitem(BACKENDS._loaded, "echo", kind)
    return kind


def test_the_built_in_backends() -> None:
    assert BACKENDS.names()[:3] == ("transformers", "vllm", "fake")
    kinds = [BACKENDS.get(name) for name in ("transformers", "vllm", "fake")]
    assert [kind.needs_weights for kind in kinds] == [True, True, False]
    assert [kind.shares_cpu for kind in kinds] == [True, False, False]


def test_an_unknown_backend_is_refused_by_the_schema() -> None:
    with pytest.raises(ValidationError, match="Input should be 'transformers', 'vllm' or 'fake'"):
        Agent(model="m", backend="vlm")


def test_a_backend_of_another_package_is_used_by_name(echo: BackendKind, tmp_path: Path) -> None:
    choice = Agent(model="m", backend="echo", device="cpu")
    inventory = Inventory(Config(home=tmp_path))
    assert inventory.locate(choice).detail == "an echo"
    problem = inventory.unavailable(choice)
    assert problem is not None and problem.reason == "Echo is not installed"
    assert isinstance(problem.error("agents.a"), ModelError) and problem.hint == HINT
    backend = load_backend(AgentSpec(name="a", backend="echo", model="m"), lambda *_: None)
    assert backend.identity.name == "echo m"
