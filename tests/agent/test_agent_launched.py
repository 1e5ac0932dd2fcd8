"""The keeper of an agent that a launcher starts: what it asks of the launcher. No cluster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLimits,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.failure import describe
from agentwire.agent.launching.launched import LaunchedAgent
from agentwire.bus.events import PeerBusy, PeerGone, PeerLost, PeerReady
from agentwire.errors import AgentwireError, ModelError
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import ModelIdentity

MODEL = ModelIdentity("m", "0" * 64, 16, 4, 1.0, "float32", "cpu")
ENDPOINT = "tcp://127.0.0.1:5555"


class Broker:
    """Says which agents were let in, and which were forgotten."""

    def __init__(self) -> None:
        self.invited: list[str] = []
        self.forgotten: list[int] = []

    def invite(self, name: str) -> None:
        self.invited.append(name)

    def forget(self, name: str, epoch: int) -> None:
        self.forgotten.append(epoch)


class Cluster:
    """A launcher that starts nothing and remembers what it was asked."""

    def __init__(self, refuses: AgentwireError | None = None) -> None:
        self.asked: list[str] = []
        self.gone = threading.Event()
        self.reason = "it was stopped"
        self._refuses = refuses

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        self.asked.append(f"launch {spec.name} at {endpoint}, {restarts} restarts")
        if self._refuses is not None:
            raise self._refuses

    def wait(self, name: str) -> str:
        assert self.gone.wait(20)
        return self.reason

    def where(self, name: str) -> str:
        return "nothing is free"

    def restart(self, name: str) -> None:
        self.asked.append(f"restart {name}")

    def stop(self, name: str) -> None:
        self.asked.append(f"stop {name}")
        self.gone.set()


class Rig:
    """A keeper under test, and everything around it."""

    def __init__(self, cluster: Cluster | None = None, load_s: float = 20.0) -> None:
        self.broker, self.cluster = Broker(), cluster or Cluster()
        self.events: list[AgentEvent] = []
        self.keeper = LaunchedAgent(
            AgentSpec(name="a", backend="fake", model="m"),
            self.broker,
            lambda: ENDPOINT,
            self.cluster,
            self.events.append,
            AgentLimits(load_s=load_s, progress_s=5),
        )

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.keeper.keep())
        yield
        self.keeper.begin_stop()
        await asyncio.wait_for(task, 20)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(4000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"it did not happen; seen: {self.events}")

    async def ready(self, epoch: int) -> None:
        await self.until(lambda: any(isinstance(e, AgentStarted) for e in self.events))
        self.keeper.handle(PeerReady("a", epoch, MODEL))

    def died(self) -> list[AgentDied]:
        return [event for event in self.events if isinstance(event, AgentDied)]


async def test_it_is_launched_awaited_and_stopped() -> None:
    rig = Rig()
    async with rig.kept():
        await rig.ready(7)
        assert rig.keeper.up.is_set()
        assert rig.events[-1] == AgentReady("a", 7, 0, MODEL)
        assert rig.broker.invited == ["a"]
    assert rig.cluster.asked == [f"launch a at {ENDPOINT}, 3 restarts", "stop a"]
    assert rig.keeper.error is None


async def test_any_number_is_launched_however_few_threads_there_are() -> None:
    rigs = [Rig() for _ in range(80)]  # asyncio has 32 threads at the most
    async with AsyncExitStack() as stack:
        for rig in rigs:
            await stack.enter_async_context(rig.kept())
        for rig in rigs:
            await rig.ready(7)
    assert all(rig.cluster.asked[-1] == "stop a" for rig in rigs)


async def test_leaving_with_the_run_is_no_death() -> None:
    rig = Rig()
    async with rig.kept():
        await rig.ready(7)
        rig.keeper.begin_stop()
        rig.keeper.handle(PeerLost("a", 7, "the connection was closed", True))
    assert rig.died() == []


async def test_a_lost_process_is_to_blame_and_may_come_back() -> None:
    rig = Rig()
    async with rig.kept():
        await rig.ready(7)
        rig.keeper.handle(PeerLost("a", 7, "the connection broke", False))
        (death,) = rig.died()
        assert death.crashed and death.restart_in is not None
        await rig.ready(8)
        assert rig.events[-1] == AgentReady("a", 8, 0, MODEL)
        rig.keeper.handle(PeerLost("a", 7, "an old connection", False))
        assert len(rig.died()) == 1
    assert rig.cluster.asked[1:] == ["stop a"]  # starting it again was the launcher's affair


async def test_one_that_left_in_order_is_not_to_blame() -> None:
    rig = Rig()
    async with rig.kept():
        await rig.ready(7)
        rig.keeper.handle(PeerGone("a", 7, "the agent ends"))
        assert [death.crashed for death in rig.died()] == [False]


async def test_one_that_hangs_is_ended_by_the_launcher() -> None:
    rig = Rig()
    async with rig.kept():
        await rig.ready(7)
        rig.keeper.handle(PeerBusy("a", 7, 4_000))
        rig.keeper.handle(PeerBusy("a", 6, 9_000))  # another incarnation's
        rig.keeper.handle(PeerBusy("a", 7, 6_000))
        await rig.until(lambda: "restart a" in rig.cluster.asked)
        assert rig.broker.forgotten == [7]
    assert rig.cluster.asked.count("restart a") == 1


async def test_gone_for_good() -> None:
    rig = Rig()
    async with rig.kept():
        await rig.ready(7)
        rig.cluster.reason = "it is started no more"
        rig.cluster.gone.set()
        await rig.until(lambda: isinstance(rig.events[-1], AgentDown))
    assert "it is started no more" in str(rig.keeper.error)


@pytest.mark.parametrize("by_bus", [True, False])
async def test_what_the_user_can_mend_is_told_as_that(by_bus: bool) -> None:
    rig = Rig()
    words = describe(ModelError("no weights.", hint="Pull them."))
    async with rig.kept():
        await rig.until(lambda: bool(rig.events))
        if by_bus:
            rig.keeper.handle(PeerGone("a", 7, words))
        else:
            rig.cluster.reason = words
        rig.cluster.gone.set()
        await rig.until(lambda: isinstance(rig.events[-1], AgentDown))
    assert isinstance(rig.keeper.error, ModelError)
    assert rig.keeper.error.hint == "Pull them."


async def test_one_that_never_comes_says_what_is_free() -> None:
    rig = Rig(load_s=0.05)
    async with rig.kept():
        await rig.until(lambda: rig.keeper.error is not None)
    assert "did not come" in str(rig.keeper.error) and "nothing is free" in str(rig.keeper.error)
    assert rig.cluster.asked[-1] == "stop a"


async def test_one_that_is_not_taken_is_down_at_once() -> None:
    refusal = AgentwireError("no such label.")
    rig = Rig(Cluster(refusal))
    async with rig.kept():
        await rig.until(lambda: bool(rig.events))
    assert rig.events == [AgentDown("a", "no such label.", refusal)]
