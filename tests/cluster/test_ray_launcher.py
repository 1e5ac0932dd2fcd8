"""Agents on a Ray cluster of three nodes on this machine: real raylets and actors, fake models.

One test runs the small pair. The head node only has the runner. Agents are placed on the other
nodes by their labels.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import COMMAND_S

import agentwire
from agentwire.agent.launching.limits import AgentLimits, RestartPolicy
from agentwire.config import Config
from agentwire.errors import AgentwireError, InputError, RequestError
from agentwire.model.fake import answer
from agentwire.model.sources.lookup import locate
from agentwire.runtime import Runtime
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import Scenario

pytest.importorskip("ray", reason="Ray is not installed here: make test-ray")
pytestmark = [
    pytest.mark.integration,
    # Ray closes sockets and files only when the interpreter exits.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "llama_to_mistral_sst2.yaml"
LABELS = ["good", "bad", "mixed"]
ASKED = {"prompt": "Is it?", "labels": LABELS}
TEXTS = [f"text number {i}" for i in range(64)]
LIMITS = AgentLimits(load_s=180, progress_s=60, restarts=RestartPolicy(restarts=2))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two nodes with one label each."""
    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine Ray's helper processes take longer to start than it waits by default.
        patch.setenv("RAY_agent_register_timeout_ms", "180000")
        patch.setenv("RAY_raylet_start_wait_time_s", "180")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        from ray.cluster_utils import Cluster

        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for room in ("a", "b"):
            made.add_node(num_cpus=2, labels={"room": room})
        yield made
        ray.shutdown()
        made.shutdown()


def scenario(cluster: Any, **receiver: Any) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "on-a-cluster",
            "launcher": "ray",
            "address": cluster.address,
            "agents": {
                "sender": {
                    "model": "s",
                    "backend": "fake",
                    "threads": 1,
                    "place": {"labels": {"room": "a"}},
                },
                "receiver": {"model": "r", "backend": "fake", "threads": 1, **receiver},
            },
            "wires": [{"from": "sender", "to": "receiver"}],
        }
    )


def runtime(
    cluster: Any,
    fake: dict[str, Any] | None = None,
    limits: AgentLimits = LIMITS,
    **receiver: Any,
) -> Runtime:
    from agentwire.agent.launching.ray import RayLauncher
    from agentwire.runtime.deployment import Deployment
    from agentwire.spec.agent import FakeModel

    deployment = Deployment.of(resolve(scenario(cluster, **receiver)))
    agents = dict(deployment.agents)
    settings = FakeModel.model_validate(fake or {})
    agents["receiver"] = agents["receiver"].model_copy(update={"fake": settings})
    built = Deployment(agents=agents, wires=deployment.wires)
    remote = RayLauncher(cluster.address).place(agents)
    return Runtime(built, limits=limits, remote=remote)


def assert_right(outcomes: list[Outcome]) -> None:
    assert len(outcomes) == len(TEXTS)
    for text, outcome in zip(TEXTS, outcomes, strict=True):
        assert isinstance(outcome, Reply), outcome
        assert outcome.label == answer(text, LABELS)


async def node_removed(room: str) -> None:
    """Returns when Ray has noticed that the node with this label is gone."""
    import ray

    for _ in range(600):
        alive = [node["Labels"].get("room") for node in ray.nodes() if node["Alive"]]
        if room not in alive:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"nodes still alive: {alive}")


async def test_a_cluster_gives_the_same_answers_as_one_machine(cluster: Any) -> None:
    wanted = scenario(cluster, place={"labels": {"room": "b"}})
    async with agentwire.open(wanted) as wire:
        assert set(wire.agents) == {"sender", "receiver"}
        assert {info.pid for info in wire.agents.values()} == {0}  # not child processes
        assert wire.remote_endpoint.startswith("tcp://")
        there = await wire.send_batch("sender", "receiver", TEXTS, **ASKED)
    async with agentwire.open(wanted.model_copy(update={"launcher": "local"})) as wire:
        here = await wire.send_batch("sender", "receiver", TEXTS, **ASKED)
    assert_right(there)
    for a, b in zip(there, here, strict=True):
        assert isinstance(a, Reply) and isinstance(b, Reply)
        assert (a.label, dict(a.scores), a.channel) == (b.label, dict(b.scores), b.channel)


async def test_each_replica_is_an_actor(cluster: Any) -> None:
    wanted = scenario(cluster, replicas=2, place={"labels": {"room": "b"}})
    async with agentwire.open(wanted) as wire:
        assert set(wire.agents) == {"sender", "receiver.1", "receiver.2"}
        calls = [
            wire.send_batch("sender", "receiver", TEXTS[i : i + 8], **ASKED)
            for i in range(0, 64, 8)
        ]
        outcomes = [outcome for batch in await asyncio.gather(*calls) for outcome in batch]
    assert_right(outcomes)
    routes = {outcome.route for outcome in outcomes if isinstance(outcome, Reply)}
    assert routes == {"sender->receiver.1", "sender->receiver.2"}


@pytest.mark.real
def test_the_small_pair_predicts_the_same_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    """``agentwire run`` on the command line: one scenario file, both launchers, real models."""
    for model in ("smollm2-135m-instruct", "gemma-3-270m"):
        if not locate(model, config=Config.from_env()).present:
            pytest.skip(f"{model} is not in the cache (`agentwire models pull {model}`)")
    found = {}
    for launcher in (["--launcher", "ray", "--address", cluster.address], ["--launcher", "local"]):
        out = tmp_path / launcher[1]
        command = [
            sys.executable,
            "-m",
            "agentwire",
            "run",
            str(SCENARIO),
            "--out",
            str(out),
        ]
        options = ["--limit", "48", "--methods", "bridge,receiver_direct", "--json", *launcher]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for alarm in ("died and restarts", "will be retried"):  # an orderly end
            assert alarm not in done.stderr
        agents = json.loads(done.stdout)["agents"]
        assert {agent["restarts"] for agent in agents.values()} == {0}
        (file,) = out.glob("*/predictions.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[launcher[1]] = {(line["method"], line["row"]): line for line in lines}
    here, there = found["local"], found["ray"]
    assert len(here) == 2 * 48 and here.keys() == there.keys()
    for key, line in here.items():
        other = there[key]
        assert (line["predicted"], line["channel"]) == (other["predicted"], other["channel"])
        # The order of summation depends on the number of threads.
        assert line["scores"] == pytest.approx(other["scores"], abs=1e-3)


async def test_ray_restarts_a_killed_process(cluster: Any) -> None:
    """A request that kills its agent twice becomes a dead letter; all others are answered."""
    async with runtime(cluster, {"crash_on": "poison"}) as wire:
        first = wire.agents["receiver"].epoch
        with pytest.raises(RequestError) as caught:
            await wire.send("sender", "receiver", "poison", deadline=120, **ASKED)
        assert caught.value.code == "dead_letter"
        assert_right(await wire.send_batch("sender", "receiver", TEXTS, deadline=120, **ASKED))
        assert wire.agents["receiver"].epoch > first
        assert wire.agents["receiver"].restarts == 2


async def test_a_killed_node_loses_no_row(cluster: Any) -> None:
    victim = cluster.add_node(num_cpus=2, labels={"room": "victim"})
    fake = {"decode_ms": 150.0}
    # Only the victim matches until the other node is added.
    place = {"labels": {"room": "in(victim, refuge)"}}
    async with runtime(cluster, fake, place=place) as wire:
        refuge = cluster.add_node(num_cpus=2, labels={"room": "refuge"})
        assert_right(await wire.send_batch("sender", "receiver", TEXTS, deadline=200, **ASKED))
        first = wire.agents["receiver"].epoch
        sending = [
            asyncio.create_task(wire.send_batch("sender", "receiver", TEXTS, deadline=200, **ASKED))
            for _ in range(4)
        ]
        await asyncio.sleep(0.4)
        assert not any(task.done() for task in sending)
        await asyncio.to_thread(cluster.remove_node, victim, allow_graceful=False)
        await node_removed("victim")
        for task in sending:
            assert_right(await task)
        assert wire.agents["receiver"].epoch > first
    cluster.remove_node(refuge)


async def test_an_agent_that_fits_no_node_fails_with_a_reason(cluster: Any) -> None:
    # Long enough for the sender to start on a busy machine.
    limits = AgentLimits(load_s=60, restarts=RestartPolicy(restarts=0))
    wire = runtime(cluster, limits=limits, place={"resources": {"moon": 1}})
    with pytest.raises(AgentwireError, match="receiver is gone: it did not connect within 60 s"):
        await wire.start()


async def test_an_input_error_reaches_the_user(cluster: Any) -> None:
    from agentwire.agent.launching.ray import RayLauncher
    from agentwire.runtime.deployment import Deployment
    from agentwire.spec.agent import AgentSpec
    from agentwire.spec.scenario import WireSpec

    pytest.importorskip("torch", reason="`make test` installs torch")
    empty = AgentSpec(name="receiver", backend="transformers", model="nothing", threads=1)
    sender = AgentSpec(name="sender", backend="fake", model="s", threads=1)
    agents = {"sender": sender, "receiver": empty}
    wire = WireSpec.model_validate({"from": "sender", "to": "receiver"})
    remote = RayLauncher(cluster.address).place(agents)
    with pytest.raises(InputError, match="weights of nothing are not on this machine"):
        await Runtime(Deployment.of_specs(agents, [wire]), limits=LIMITS, remote=remote).start()
