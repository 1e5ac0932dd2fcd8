"""Pairs of fake agents that wait as a GPU would compute, over ipc or tcp."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from fakes import agents_of, wire_of

from agentwire.agent.launching.placement import Remote
from agentwire.agent.launching.run_keys import RunKeys
from agentwire.runtime.deployment import Deployment
from agentwire.spec.agent import (
    AgentSpec,
    FakeModel,
    Placement,
)
from agentwire.wire.messages import TaskSpec

WIDTH: Final = 4096
PAYLOAD_BYTES: Final = 8 * WIDTH * 2  # of a row, fp16
TASK: Final = TaskSpec("scaling", "Answer:", "{text}\nAnswer:", ("good", "bad"))


def deployment(pairs: int, batch: int, compute_ms: float, *, by_message: bool = True) -> Deployment:
    """``pairs`` senders, each with a receiver of its own.

    Args:
        compute_ms: time that each agent waits for a batch.
        by_message: a message is a batch; otherwise rows of several messages share batches.
    """
    fake = FakeModel(width=WIDTH, encode_ms=compute_ms, decode_ms=compute_ms)
    agents: dict[str, AgentSpec] = {}
    wires = []
    for i in range(pairs):
        wire = wire_of(f"sender-{i}", f"receiver-{i}", fallback="error")
        wires.append(wire)
        agents |= agents_of(
            wire,
            fake,
            fake,
            max_batch=batch,
            batch_by="message" if by_message else "rows",
            place=Placement(cpus=0),  # they only wait, and there are more of them than cores
        )
    return Deployment.of_specs(agents, wires, task=TASK)


class OverTcp:
    """A launcher whose agents join the bus over tcp with CURVE keys, as from other machines."""

    def __init__(self) -> None:
        self._keys = RunKeys()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def remote(self, agents: frozenset[str]) -> Remote:
        return Remote(self._keys.access("tcp://127.0.0.1:*"), agents, self)

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        bootstrap = self._keys.bootstrap(spec, endpoint)
        child = subprocess.Popen(
            [sys.executable, "-m", "agentwire.agent.process"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdin is not None
        child.stdin.write(bootstrap.model_dump_json().encode() + b"\n")
        child.stdin.flush()
        self._children[spec.name] = child

    def wait(self, name: str) -> str:
        return f"it ended with {self._children[name].wait()}"

    def pending_reason(self, name: str) -> str:
        return ""

    def restart(self, name: str) -> None:
        self._children[name].kill()  # a benchmark does not go on after that

    def stop(self, name: str) -> None:
        self._children[name].kill()
