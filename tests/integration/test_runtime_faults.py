"""Agents that die, hang or cannot start: no request is lost or answered twice."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fake_run import LIMITS, TASK, Events, fake_runtime, is_alive, my_children, until
from patience import EVENT_S

from agentwire.agent.launching.limits import RestartPolicy
from agentwire.errors import AgentwireError, BridgeError, NackCode, RequestError
from agentwire.model.fake import answer
from agentwire.runtime import AgentLimits, ProgressEvent, Reply
from agentwire.wire.session import Timing

pytestmark = pytest.mark.integration

TEXTS = [f"review number {n}" for n in range(96)]


def expected(texts: list[str]) -> list[str]:
    return [answer(text, TASK.labels) for text in texts]


@pytest.mark.parametrize("victim", ["sender", "receiver"])
async def test_killing_an_agent_loses_and_duplicates_nothing(victim: str) -> None:
    journal = Events()
    events: list[ProgressEvent] = []
    slow = {"encode_ms": 20, "decode_ms": 20}
    async with fake_runtime(
        sender=slow, receiver=slow, journal=journal, progress=events.append
    ) as wire:
        pid = wire.agents[victim].pid
        labels: list[str | None] = []
        async for batch in wire.send_many("sender", "receiver", TEXTS, batch_size=8):
            labels += [reply.label for reply in batch]
            if len(labels) == 16:
                os.kill(pid, signal.SIGKILL)
        assert wire.agents[victim].pid != pid and wire.agents[victim].epoch == 2
    assert labels == expected(TEXTS)
    ids = journal.ids("finished")
    assert len(ids) == len(set(ids)) == len(TEXTS)
    assert {fields["outcome"] for fields in journal.of("finished")} == {"answered"}
    assert [(e.agent, e.stage) for e in events if e.stage == "lost"] == [(victim, "lost")]
    assert not my_children()


@pytest.mark.parametrize("where", ["sender", "receiver"])
async def test_a_poison_row_is_dead_lettered_and_other_rows_are_answered(where: str) -> None:
    texts = [*TEXTS[:20], "poison", *TEXTS[20:40]]
    async with fake_runtime(**{where: {"crash_on": "poison"}}) as wire:
        calls = [wire.send_batch("sender", "receiver", texts[i : i + 8]) for i in range(0, 41, 8)]
        outcomes = [o for batch in await asyncio.gather(*calls) for o in batch]
        dead = outcomes.pop(20)
        assert isinstance(dead, RequestError) and dead.code is NackCode.DEAD_LETTER
        assert where in dead.message and "SIGKILL" in dead.message
        assert [o.label for o in outcomes if isinstance(o, Reply)] == expected(TEXTS[:40])
        assert wire.agents[where].epoch == 3  # it died twice
        after = await wire.send("sender", "receiver", "after")
        assert after.label == expected(["after"])[0]


async def test_a_hung_model_is_killed_and_its_row_ends() -> None:
    limits = AgentLimits(load_s=EVENT_S, progress_s=1.0, stop_s=2, restarts=LIMITS.restarts)
    async with fake_runtime(sender={"hang_on": "hang"}, limits=limits) as wire:
        batch = ["fine", "hang", "also fine"]
        first, hung, last = await wire.send_batch("sender", "receiver", batch)
        assert isinstance(hung, RequestError) and hung.code is NackCode.DEAD_LETTER
        assert "computed one batch" in hung.message
        assert isinstance(first, Reply) and isinstance(last, Reply)


async def test_a_stopped_process_is_detected_and_replaced() -> None:
    async with fake_runtime(timing=Timing(ping_ms=200, liveness_ms=1500)) as wire:
        pid = wire.agents["receiver"].pid
        os.kill(pid, signal.SIGSTOP)
        outcomes = await wire.send_batch("sender", "receiver", TEXTS[:8], deadline=60)
        assert [o.label for o in outcomes if isinstance(o, Reply)] == expected(TEXTS[:8])
        assert not is_alive(pid)


async def test_requests_fail_fast_once_the_restart_budget_is_spent() -> None:
    limits = AgentLimits(load_s=EVENT_S, restarts=RestartPolicy(1, 60, (0.0,)))
    async with fake_runtime(receiver={"crash_on": "poison"}, limits=limits) as wire:
        batch = await wire.send_batch("sender", "receiver", ["poison", "a", "b"])
        codes = [o.code if isinstance(o, RequestError) else None for o in batch]
        assert codes == [NackCode.DEAD_LETTER, NackCode.AGENT_DOWN, NackCode.AGENT_DOWN]
        with pytest.raises(RequestError) as error:
            await wire.send("sender", "receiver", "later")
        assert error.value.code is NackCode.AGENT_DOWN
        direct = await wire.direct("sender", "alive")
        assert direct.label == expected(["alive"])[0]


async def test_an_agent_that_cannot_load_names_the_cause() -> None:
    runtime = fake_runtime(bridge="/no/such/bridge")
    with pytest.raises(BridgeError, match="holds no card") as error:
        await runtime.start()
    assert error.value.hint
    assert not my_children()


async def test_an_agent_that_crashes_while_loading_is_not_restarted_forever(tmp_path: Path) -> None:
    limits = AgentLimits(load_s=0.3, restarts=RestartPolicy(1, 60, (0.0,)))
    runtime = fake_runtime(sender={"load_ms": 5000}, limits=limits, run_folder=tmp_path)
    with pytest.raises(AgentwireError, match=r"died 2 times.*did not load") as error:
        await runtime.start()
    assert ".log" in (error.value.hint or "")  # the log of either agent
    assert not my_children()


async def test_a_cancelled_start_leaves_no_processes() -> None:
    runtime = fake_runtime(sender={"load_ms": 20_000})
    task = asyncio.create_task(runtime.start())
    await until(lambda: len(my_children()) == 2, "both agents are there")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not my_children()


async def test_the_bus_folder_and_logs(tmp_path: Path) -> None:
    async with fake_runtime(run_folder=tmp_path) as wire:
        await wire.send("sender", "receiver", "x")
    assert "ready" in (tmp_path / "logs" / "sender.log").read_text()
    assert '"event": "finished"' in (tmp_path / "journal.jsonl").read_text()


PARENT = """
import asyncio, sys
sys.path[:0] = sys.argv[2:]
from fake_run import fake_runtime

async def main():
    async with fake_runtime(sender={"hang_on": "hang"}) as wire:
        print(*(info.pid for info in wire.agents.values()), flush=True)
        if sys.argv[1] == "busy":
            await wire.send("sender", "receiver", "hang")
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_agent_outlives_a_killed_parent(state: str) -> None:
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    command = [sys.executable, "-c", PARENT, state, *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
        finally:
            parent.kill()
    gone = until(lambda: not any(is_alive(pid) for pid in pids), "the agents are gone")
    asyncio.run(gone)


async def test_agents_are_shielded_from_ctrl_c() -> None:
    async with fake_runtime() as wire:
        for info in wire.agents.values():
            process = psutil.Process(info.pid)
            assert os.getsid(info.pid) == info.pid  # its own session
            process.send_signal(signal.SIGINT)
        reply = await wire.send("sender", "receiver", "still here")
        assert reply.label == expected(["still here"])[0]
        assert all(info.epoch == 1 for info in wire.agents.values())
