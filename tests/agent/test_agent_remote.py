"""RemoteAgent with a fake launcher: what it requests and which events it reports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from patience import EVENT_S

from agentwire.agent.launching.events import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.launching.failure import encode_error
from agentwire.agent.launching.limits import AgentLimits, RestartPolicy
from agentwire.agent.launching.remote import RemoteAgent
from agentwire.bus.events import PeerBusy, PeerLeft, PeerLost, PeerReady
from agentwire.errors import AgentwireError, ModelError
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import ModelIdentity

MODEL = ModelIdentity("m", "0" * 64, 16, 4, 1.0, "float32", "cpu")
ENDPOINT = "tcp://127.0.0.1:5555"


class Broker:
    """Records which agents were invited and which epochs were forgotten."""

    remote_endpoint = ENDPOINT

    def __init__(self) -> None:
        self.invited: list[str] = []
        self.forgotten: list[int] = []

    def expect_remote(self, name: str) -> None:
        self.invited.append(name)

    def disconnect(self, name: str, epoch: int) -> None:
        self.forgotten.append(epoch)


class Cluster:
    """A launcher that starts nothing and records the calls."""

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
        assert self.gone.wait(EVENT_S)
        return self.reason

    def pending_reason(self, name: str) -> str:
        return "nothing is free"

    def restart(self, name: str) -> None:
        self.asked.append(f"restart {name}")

    def stop(self, name: str) -> None:
        self.asked.append(f"stop {name}")
        self.gone.set()


class Rig:
    """The agent under test, its broker and its launcher."""

    def __init__(self, cluster: Cluster | None = None, load_s: float = 20.0) -> None:
        self.broker, self.cluster = Broker(), cluster or Cluster()
        self.events: list[AgentEvent] = []
        self.agent = RemoteAgent(
            AgentSpec(name="a", backend="fake", model="m"),
            self.broker,
            self.cluster,
            self.events.append,
            AgentLimits(load_s=load_s, progress_s=5, restarts=RestartPolicy(3, 60, (0.05,))),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.agent.run())
        yield
        self.agent.begin_stop()
        await asyncio.wait_for(task, EVENT_S)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(4000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"condition not met; events: {self.events}")

    async def ready(self, epoch: int) -> None:
        await self.until(lambda: any(isinstance(e, AgentStarted) for e in self.events))
        self.agent.handle(PeerReady("a", epoch, MODEL))

    def died(self) -> list[AgentDied]:
        return [event for event in self.events if isinstance(event, AgentDied)]


async def test_it_is_launched_and_stopped() -> None:
    rig = Rig()
    async with rig.running():
        await rig.ready(7)
        assert rig.agent.ready.is_set()
        assert rig.events[-1] == AgentReady("a", 7, 0, MODEL)
        assert rig.broker.invited == ["a"]
    assert rig.cluster.asked == [f"launch a at {ENDPOINT}, 3 restarts", "stop a"]
    assert rig.agent.error is None


async def test_more_agents_than_asyncio_has_threads() -> None:
    rigs = [Rig() for _ in range(80)]  # asyncio has 32 threads at the most
    async with AsyncExitStack() as stack:
        for rig in rigs:
            await stack.enter_async_context(rig.running())
        for rig in rigs:
            await rig.ready(7)
    assert all(rig.cluster.asked[-1] == "stop a" for rig in rigs)


async def test_a_connection_lost_while_stopping_is_not_a_death() -> None:
    rig = Rig()
    async with rig.running():
        await rig.ready(7)
        rig.agent.begin_stop()
        rig.agent.handle(PeerLost("a", 7, "the connection was closed", True))
    assert rig.died() == []


async def test_a_lost_connection_counts_as_a_crash_and_the_agent_may_come_back() -> None:
    rig = Rig()
    async with rig.running():
        await rig.ready(7)
        rig.agent.handle(PeerLost("a", 7, "the connection broke", False))
        (death,) = rig.died()
        assert death.crashed and death.restart_in is not None
        await rig.ready(8)
        assert rig.events[-1] == AgentReady("a", 8, 0, MODEL)
        rig.agent.handle(PeerLost("a", 7, "an old connection", False))
        assert len(rig.died()) == 1
    assert rig.cluster.asked[1:] == ["stop a"]  # the launcher restarts it by itself


async def test_an_orderly_exit_is_not_a_crash() -> None:
    rig = Rig()
    async with rig.running():
        await rig.ready(7)
        rig.agent.handle(PeerLeft("a", 7, "the agent ends"))
        assert [death.crashed for death in rig.died()] == [False]


async def test_a_hung_agent_is_restarted_by_the_launcher() -> None:
    rig = Rig()
    async with rig.running():
        await rig.ready(7)
        rig.agent.handle(PeerBusy("a", 7, 4_000))
        rig.agent.handle(PeerBusy("a", 6, 9_000))  # of another incarnation
        rig.agent.handle(PeerBusy("a", 7, 6_000))
        await rig.until(lambda: "restart a" in rig.cluster.asked)
        assert rig.broker.forgotten == [7]
    assert rig.cluster.asked.count("restart a") == 1


async def test_the_launcher_gives_up() -> None:
    rig = Rig()
    async with rig.running():
        await rig.ready(7)
        rig.cluster.reason = "it is not restarted"
        rig.cluster.gone.set()
        await rig.until(lambda: isinstance(rig.events[-1], AgentDown))
    assert "it is not restarted" in str(rig.agent.error)


@pytest.mark.parametrize("by_bus", [True, False])
async def test_an_input_error_reaches_the_user(by_bus: bool) -> None:
    rig = Rig()
    reason = encode_error(ModelError("no weights.", hint="Pull them."))
    async with rig.running():
        await rig.until(lambda: bool(rig.events))
        if by_bus:
            rig.agent.handle(PeerLeft("a", 7, reason))
        else:
            rig.cluster.reason = reason
        rig.cluster.gone.set()
        await rig.until(lambda: isinstance(rig.events[-1], AgentDown))
    assert isinstance(rig.agent.error, ModelError)
    assert rig.agent.error.hint == "Pull them."


async def test_an_agent_that_never_connects_says_why_it_is_pending() -> None:
    rig = Rig(load_s=0.05)
    async with rig.running():
        await rig.until(lambda: rig.agent.error is not None)
    assert "did not connect" in str(rig.agent.error) and "nothing is free" in str(rig.agent.error)
    assert rig.cluster.asked[-1] == "stop a"


async def test_an_agent_that_cannot_be_placed_is_down_at_once() -> None:
    refusal = AgentwireError("no such label.")
    rig = Rig(Cluster(refusal))
    async with rig.running():
        await rig.until(lambda: bool(rig.events))
    assert rig.events == [AgentDown("a", "no such label.", refusal)]


class FailingCluster(Cluster):
    """A launcher whose call ``what`` raises as long as ``times`` is positive."""

    def __init__(self, what: str, times: int) -> None:
        super().__init__()
        self.what, self.times = what, times

    def fail(self, what: str) -> None:
        if what == self.what and self.times > 0:
            self.times -= 1
            raise OSError("Too many open files")

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        super().launch(spec, endpoint, restarts)
        self.fail("launch")
        self.gone.clear()

    def wait(self, name: str) -> str:
        self.fail("wait")
        return super().wait(name)

    def restart(self, name: str) -> None:
        self.fail("restart")

    def stop(self, name: str) -> None:
        super().stop(name)
        self.fail("stop")


@pytest.mark.parametrize("what", ["launch", "wait", "restart", "stop"])
async def test_a_launcher_that_fails_once_is_asked_again(what: str) -> None:
    rig = Rig(FailingCluster(what, 1))
    async with rig.running():
        await rig.ready(7)
        rig.agent.handle(PeerBusy("a", 7, 9_000))
        if what == "stop":
            return
        await rig.until(lambda: bool(rig.died()))
        launches = 1 if what == "launch" else 2
        await rig.until(lambda: len([e for e in rig.events if type(e) is AgentStarted]) == launches)
        await rig.ready(8)
    assert "its launcher failed: OSError: Too many open files" in rig.died()[0].reason
    assert not rig.died()[0].crashed and rig.agent.error is None


async def test_a_launcher_that_always_fails_ends_in_agent_down() -> None:
    rig = Rig(FailingCluster("launch", 99))
    async with rig.running():
        await rig.until(lambda: rig.agent.error is not None)
    assert isinstance(rig.events[-1], AgentDown) and len(rig.died()) == 3
    assert "Too many open files" in str(rig.agent.error)
