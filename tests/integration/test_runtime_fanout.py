"""Fan-out with real processes: one sender and receivers that share its bridge."""

import asyncio
import os
import signal
from typing import Any

import pytest
from fake_run import LIMITS, TASK, fake_runtime

from agentwire.errors import NackCode, RequestError
from agentwire.model.fake import answer
from agentwire.runtime import Runtime
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.reply import Reply
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.spec.scenario import WireSpec

pytestmark = pytest.mark.integration

RECEIVERS = ["judge", "critic"]


def triangle(*, replicas: dict[str, int] | None = None, **critic: Any) -> Runtime:
    """A sender, and two receivers of the same model."""
    wires = [WireSpec.model_validate({"from": "sender", "to": name}) for name in RECEIVERS]
    agents = {
        "sender": AgentSpec(
            name="sender",
            backend="fake",
            model="sender-model",
            bridges=tuple(
                OutgoingBridge(wire=wire.name, receiver=wire.receiver, folder="fake:judge-model")
                for wire in wires
            ),
            fake=FakeModel(encode_ms=5),
        ),
        "judge": AgentSpec(name="judge", backend="fake", model="judge-model"),
        "critic": AgentSpec(
            name="critic",
            backend="fake",
            model="judge-model",
            fake=FakeModel.model_validate(critic),
        ),
    }
    return Runtime(Deployment.of_specs(agents, wires, task=TASK, replicas=replicas), limits=LIMITS)


async def test_each_receiver_answers_after_one_reading() -> None:
    texts = [f"text {n}" for n in range(12)]
    async with triangle(replicas={"sender": 2, "critic": 2}) as wire:
        questions: Any = {"judge": {}, "critic": {"prompt": "Which?", "labels": ["x", "y"]}}
        answers = await asyncio.gather(*(wire.fan_out("sender", questions, t) for t in texts))
        for text, got in zip(texts, answers, strict=True):
            judge, critic = got["judge"], got["critic"]
            assert isinstance(judge, Reply) and isinstance(critic, Reply)
            assert judge.label == answer(text, TASK.labels)
            assert critic.label == answer(text, ("x", "y"))
            for reply in (judge, critic):
                assert reply.channel == "soft" and reply.payload_bytes == 256
                assert "encode" not in reply.stages  # the sender has already read it
        encoded = sum(wire.status()["stages"]["encode"]["counts"])
        assert encoded == len(texts)  # once for each text, not for each receiver


async def test_errors_concern_one_receiver() -> None:
    async with triangle(raise_on="bad") as wire:
        got = await wire.fan_out("sender", RECEIVERS, "bad")
        judge, critic = got["judge"], got["critic"]
        assert isinstance(judge, Reply) and judge.label == answer("bad", TASK.labels)
        assert isinstance(critic, RequestError) and critic.code is NackCode.MODEL_ERROR


async def test_a_sender_that_dies_reads_the_text_again() -> None:
    async with triangle(decode_ms=300) as wire:
        texts = [f"text {n}" for n in range(6)]
        asked = [asyncio.create_task(wire.fan_out("sender", RECEIVERS, t)) for t in texts]
        await asyncio.sleep(0.05)
        os.kill(wire.agents["sender"].pid, signal.SIGKILL)
        for text, task in zip(texts, asked, strict=True):
            got = await task
            labels = [o.label if isinstance(o, Reply) else o.code for o in got.values()]
            assert labels == [answer(text, TASK.labels)] * 2


async def test_without_a_bridge_each_receiver_gets_the_text() -> None:
    async with fake_runtime(bridge=None) as wire:
        got = await wire.fan_out("sender", ["receiver"], "a text of words")
        (reply,) = got.values()
        assert isinstance(reply, Reply) and (reply.channel, reply.reason) == ("text", "no_bridge")
