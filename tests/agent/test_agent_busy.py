"""An agent counts as busy while it handles a message, so that the hang limit sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentwire.agent.service import Inbox, Service
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import Define, TaskSpec


@pytest.mark.parametrize("running", [None, 12.5])
def test_an_agent_is_busy_while_it_prepares_a_task(running: float | None) -> None:
    endpoint: Any = SimpleNamespace(busy_since=running, poll=lambda seconds, done: False)
    inbox = Inbox()
    service: Any = Service(AgentSpec(name="ada", backend="fake", model="m"), endpoint, inbox)
    seen: list[float | None] = []
    handle = lambda message, arrival: seen.append(endpoint.busy_since)  # noqa: E731
    service._worker = SimpleNamespace(handle=handle)
    inbox.put(Define(TaskSpec("t", "Q:", "{text}", ("a", "b"))), 0.0)
    service._poll()
    assert seen == [running] if running else seen[0] is not None
    assert endpoint.busy_since == running
