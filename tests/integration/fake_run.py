"""Runtimes of fake agents for the integration tests."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for programs that import only this file
from patience import EVENT_S

from agentwire.agent.launching.limits import RestartPolicy
from agentwire.runtime import AgentLimits, Runtime
from agentwire.runtime.deployment import Deployment
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import RelaySpec, TaskSpec

TASK = TaskSpec(
    "task", "Answer:", "{text}\nAnswer:", ("good", "bad", "mixed"), RelaySpec("Sum up: {text}", 2)
)
LIMITS = AgentLimits(
    load_s=EVENT_S, progress_s=EVENT_S, stop_s=5, restarts=RestartPolicy(8, 60, (0.0, 0.1))
)


def fake_runtime(
    *,
    sender: dict[str, Any] | None = None,
    receiver: dict[str, Any] | None = None,
    bridge: str | None = "fake:receiver-model",
    fallback: str = "text",
    wire: dict[str, Any] | None = None,
    limits: AgentLimits = LIMITS,
    deployment: dict[str, Any] | None = None,
    rehearse: bool = False,
    **kw: Any,
) -> Runtime:
    """A runtime of two fake agents; ``sender`` and ``receiver`` set their faults and delays."""
    edge = WireSpec.model_validate(
        {"from": "sender", "to": "receiver", "fallback": fallback, **(wire or {})}
    )
    bridges = (OutgoingBridge(wire=edge.name, receiver="receiver", folder=bridge),)
    agents = {
        "sender": AgentSpec(
            name="sender",
            backend="fake",
            model="sender-model",
            threads=1,
            bridges=bridges,
            rehearse=rehearse,
            fake=FakeModel.model_validate(sender or {}),
        ),
        "receiver": AgentSpec(
            name="receiver",
            backend="fake",
            model="receiver-model",
            threads=1,
            rehearse=rehearse,
            fake=FakeModel.model_validate(receiver or {}),
        ),
    }
    built = Deployment.of_specs(agents, [edge], **({"task": TASK} | (deployment or {})))
    return Runtime(built, limits=limits, **kw)


async def until(condition: Callable[[], bool], what: str, seconds: float = EVENT_S) -> None:
    """Wait for a condition; on failure, name it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def my_children() -> list[int]:
    return [child.pid for child in psutil.Process(os.getpid()).children(recursive=True)]


class Events:
    """A journal in memory."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def write(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]

    def ids(self, event: str) -> list[str]:
        return [i for fields in self.of(event) for i in fields["request_ids"]]
