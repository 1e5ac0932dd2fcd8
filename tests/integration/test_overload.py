"""Overload: queues are bounded, and a slow receiver does not stall others."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from fake_run import LIMITS, TASK, fake_runtime, until

from agentwire.errors import NackCode, RequestError
from agentwire.model.fake import answer
from agentwire.runtime import Runtime
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission
from agentwire.runtime.reply import Reply
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.spec.scenario import WireSpec

pytestmark = pytest.mark.integration

TEXTS = [f"review number {n}" for n in range(96)]


def star() -> Runtime:
    """One sender with a wire to each of two receivers."""
    names = ("slow", "fast")
    wires = [WireSpec.model_validate({"from": "hub", "to": name}) for name in names]
    bridges = tuple(
        OutgoingBridge(wire=wire.name, receiver=wire.receiver, folder=f"fake:{wire.receiver}")
        for wire in wires
    )
    common: dict[str, Any] = {"backend": "fake", "threads": 1, "fake": FakeModel()}
    agents = {name: AgentSpec(name=name, model=name, **common) for name in names}
    agents["hub"] = AgentSpec(name="hub", model="hub", bridges=bridges, **common)
    return Runtime(Deployment.of_specs(agents, wires, task=TASK), limits=LIMITS)


def labels(outcomes: list[Any]) -> list[str | None]:
    return [outcome.label for outcome in outcomes if isinstance(outcome, Reply)]


async def test_a_receiver_that_does_not_read_does_not_stall_other_wires() -> None:
    wanted = [answer(text, TASK.labels) for text in TEXTS]
    async with star() as wire:
        os.kill(wire.agents["slow"].pid, signal.SIGSTOP)
        # More than all queues on the route to it can hold.
        stuck = [
            asyncio.create_task(wire.send_batch("hub", "slow", TEXTS[:16], deadline=60))
            for _ in range(80)
        ]
        await until(lambda: wire.metrics()["queued_messages"] > 0, "its queues fill up")
        for _ in range(3):
            assert labels(await wire.send_batch("hub", "fast", TEXTS, deadline=60)) == wanted
        metrics = wire.metrics()
        assert not any(task.done() for task in stuck)
        assert metrics["queued_messages"] <= 2 * 16 + 2  # two hops with one queue each
        os.kill(wire.agents["slow"].pid, signal.SIGCONT)
        for batch in await asyncio.gather(*stuck):
            assert labels(batch) == wanted[:16]


async def test_refused_requests_fail_at_once_with_a_retry_time() -> None:
    slow = {"encode_ms": 50}
    async with fake_runtime(sender=slow, admission=Admission(rows=64)) as wire:
        calls = [wire.send_batch("sender", "receiver", TEXTS[:16], deadline=60) for _ in range(10)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [r for r in results if isinstance(r, RequestError)]
        admitted = [r for r in results if not isinstance(r, BaseException)]
        assert len(admitted) == 4 and len(refused) == 6
        assert {error.code for error in refused} == {NackCode.OVERLOADED}
        assert all(error.retry_after_s and error.retry_after_s <= 30 for error in refused)
        # There is capacity again.
        again = await wire.send_batch("sender", "receiver", TEXTS[:16], deadline=60)
    for batch in [*admitted, again]:
        assert labels(batch) == [answer(text, TASK.labels) for text in TEXTS[:16]]
