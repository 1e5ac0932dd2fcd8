"""Fan-in with real processes: one receiver reads two senders in the declared order."""

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
from fake_run import LIMITS, TASK

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.model.fake import answer, joint_answer
from agentwire.runtime import Runtime
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import Scenario

pytestmark = pytest.mark.integration

ROWS = [(f"plot {n}", f"acting {n}") for n in range(24)]
ASKED: Any = {"prompt": TASK.prompt, "labels": TASK.labels}


def joined(receiver: dict[str, Any] | None = None, **wire: Any) -> Runtime:
    """Senders a and b, whose soft tokens c reads together; and c's own wire to d."""
    fake = {"backend": "fake"}
    scenario = Scenario.model_validate(
        {
            "name": "joined",
            "agents": {
                "a": {"model": "m-a", **fake},
                "b": {"model": "m-b", **fake, "replicas": 2},
                "c": {"model": "m-c", **fake, **(receiver or {})},
                "d": {"model": "m-c", **fake},
            },
            "wires": [{"from": ["a", "b"], "to": "c", **wire}, {"from": "a", "to": "d"}],
        }
    )
    return Runtime(resolve(scenario), limits=LIMITS)


def expected(rows: Sequence[Sequence[str]]) -> list[str]:
    return [joint_answer(row, TASK.labels) for row in rows]


def labels(outcomes: Sequence[Any]) -> list[Any]:
    return [o.label if isinstance(o, Reply) else o.code for o in outcomes]


@pytest.mark.parametrize("receiver", [{}, {"replicas": 2}], ids=["one", "two"])
async def test_the_receiver_reads_all_senders_in_the_declared_order(
    receiver: dict[str, Any],
) -> None:
    assert expected(ROWS) != expected([row[::-1] for row in ROWS])  # the order matters
    async with joined(receiver) as wire:
        assert labels(await wire.fan_in_batch(["a", "b"], "c", ROWS, **ASKED)) == expected(ROWS)
        one = await wire.fan_in({"b": "acting 0", "a": "plot 0"}, "c", **ASKED)
        assert one.label == expected(ROWS[:1])[0]
        assert (one.channel, one.payload_bytes) == ("soft", 2 * 8 * 16 * 2)
        assert one.route.startswith("a+b.") and "->c" in one.route
        assert sum(one.stages.values()) == pytest.approx(one.latency_ms)
        calls = [wire.fan_in({"a": a, "b": b}, "c", **ASKED) for a, b in ROWS]
        assert labels(await asyncio.gather(*calls)) == expected(ROWS)


@pytest.mark.parametrize("receiver", [{}, {"replicas": 2}], ids=["one", "two"])
async def test_kept_payloads_are_read_together_later(receiver: dict[str, Any]) -> None:
    rows = ROWS[:8]
    async with joined(receiver) as wire:
        kept = [(await wire.keep("a", "c", a), await wire.keep("b", "c", b)) for a, b in rows]
        assert {payload.channel for pair in kept for payload in pair} == {"soft"}
        for _ in range(2):  # any number of times
            assert labels(await wire.fan_in_batch(["a", "b"], "c", kept, **ASKED)) == expected(rows)
        mixed = [(a, pair[1]) for (a, _), pair in zip(rows, kept, strict=True)]
        assert labels(await wire.fan_in_batch(["a", "b"], "c", mixed, **ASKED)) == expected(rows)
        with pytest.raises(ScenarioError, match="cannot mix"):
            await wire.fan_in_batch(["a", "b"], "c", [rows[0], kept[0]], **ASKED)
        with pytest.raises(RequestError) as error:  # one payload alone is not enough
            await wire.send("a", "c", kept[0][0], fallback="error", **ASKED)
        assert error.value.code is NackCode.PROMPT_MISMATCH


async def test_a_joint_bridge_alone_never_carries_soft_tokens() -> None:
    async with joined() as wire:
        alone = await wire.send("a", "c", "plot 1", **ASKED)
        assert (alone.channel, alone.reason) == ("text", "prompt_mismatch")
        with pytest.raises(RequestError) as error:
            await wire.send("a", "c", "plot 1", fallback="error", **ASKED)
        assert error.value.code is NackCode.PROMPT_MISMATCH
        other = await wire.send("a", "d", "plot 1", **ASKED)
        assert (other.channel, other.label) == ("soft", answer("plot 1", TASK.labels))


async def test_an_undeclared_joint_wire_is_refused_with_a_hint_to_train() -> None:
    async with joined() as wire:
        for senders, receiver in ((["b", "a"], "c"), (["a"], "d"), (["a", "b"], "d")):
            with pytest.raises(ScenarioError, match="no joint wire") as caught:
                await wire.fan_in_batch(senders, receiver, [["x"] * len(senders)], **ASKED)
            assert f"from: [{', '.join(senders)}]" in (caught.value.hint or "")
            assert "agentwire train" in (caught.value.hint or "")
        with pytest.raises(ScenarioError, match="1 texts for 2 senders"):
            await wire.fan_in_batch(["a", "b"], "c", [["x"]], **ASKED)


@pytest.mark.parametrize("victim", ["a", "c"])
async def test_an_agent_that_dies_in_between_costs_only_time(victim: str) -> None:
    async with joined() as wire:
        calls = [wire.fan_in_batch(["a", "b"], "c", ROWS[i : i + 4], **ASKED) for i in (0, 4, 8)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.01)
        os.kill(wire.agents[victim].pid, signal.SIGKILL)
        found = [label for task in tasks for label in labels(await task)]
        assert found == expected(ROWS[:12])
