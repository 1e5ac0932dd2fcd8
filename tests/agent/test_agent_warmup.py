"""Warm-up replays the last message and has no visible effect."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agentwire.agent.warmup import ACTIVE_S, EVERY_S, Warmup
from agentwire.agent.worker import Worker
from agentwire.model.fake import FakeBackend
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.wire.messages import (
    Accept,
    Channel,
    Credit,
    Define,
    Encode,
    Message,
    Mode,
    Offer,
    Payload,
    Result,
    Row,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)

WIRE = "sender->receiver"
TASK = TaskSpec("t", "Answer:", "{text}\nAnswer:", ("good", "bad"))
FREE = TaskSpec("f", "Go on:", "{text}", max_new_tokens=8)


class Device(FakeBackend):
    """A model that counts its calls and records warm-up calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name, FakeModel())
        self.asked = 0
        self.warmed: list[tuple[str, ...]] = []

    def encode(self, texts: Sequence[str], bridge: str) -> Any:
        self.asked += 1
        return super().encode(texts, bridge)

    def score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Any:
        self.asked += 1
        return super().score_soft(payload, task)

    def warm_up(self, texts: Sequence[str]) -> None:
        self.warmed.append(tuple(texts))


class Stage:
    """An agent's worker and its warm-up, with a manual clock."""

    def __init__(self, name: str) -> None:
        self.now = 100.0
        self.sent: list[Message] = []
        self.backend = Device(name)
        out = (OutgoingBridge(wire=WIRE, receiver="receiver", folder="fake:receiver"),)
        sends = name == "sender"
        spec = AgentSpec(
            name=name,
            backend="fake",
            model=name,
            max_wait_ms=5.0,
            bridges=out if sends else (),
            incoming=() if sends else (WIRE,),
        )
        bridge = FakeBackend("sender", FakeModel()).add_bridge(Path("fake:receiver"))
        bridges = {WIRE: self.backend.add_bridge(Path("fake:receiver"))} if sends else {}
        self.bridge = bridge
        self.worker = Worker(spec, self.backend, bridges, self.sent.append, lambda: self.now)
        self.warmup = Warmup(spec, self.backend, bridges, self.worker.agreements, lambda: self.now)
        self.worker.start()
        self.rereplayed: list[Message] = []
        send = self.warmup._send
        self.warmup._worker._outbox._send = lambda m: (self.rereplayed.append(m), send(m))  # type: ignore[assignment]
        self.handle(Define(TASK), Define(FREE))
        if sends:
            self.handle(Accept(WIRE, bridge.fingerprint), Credit(WIRE, 16, 1 << 20))
        else:
            self.handle(Offer(WIRE, bridge))

    def handle(self, *messages: Message) -> None:
        """Handles messages as the agent's main loop does."""
        for message in messages:
            self.worker.handle(message, self.now)
            self.warmup.observe(message, self.now)
        self.now += 0.005
        while self.worker.run_once():
            pass
        self.sent.clear()

    def wait(self, seconds: float) -> list[Message]:
        """The messages of the replays within ``seconds``."""
        self.rereplayed.clear()
        end = self.now + seconds
        while self.now < end:
            self.warmup.replay(self.now)
            self.now += EVERY_S / 4
        return self.rereplayed


def encode(texts: Sequence[str] = ("a film",), task: TaskSpec = TASK, **kw: Any) -> Encode:
    rows = tuple(Row(os.urandom(16), 1000, os.urandom(16), size=len(t)) for t in texts)
    fields: dict[str, Any] = {"channel": Channel.SOFT, "fallback": "text", "origin": "client"}
    return Encode(wire=WIRE, task=task.task_id, rows=rows, texts=tuple(texts), **(fields | kw))


def soft(stage: Stage, text: str = "a film", **kw: Any) -> Soft:
    payload = FakeBackend("sender", FakeModel())
    payload.add_bridge(Path("fake:receiver"))
    made = payload.encode([text], stage.bridge.fingerprint).payload
    fields: dict[str, Any] = {
        "wire": WIRE, "task": TASK.task_id, "bridge": stage.bridge.fingerprint,
        "rows": (Row(os.urandom(16), 1000, os.urandom(16)),), "stages": {"encode": 5.0},
        "payload": Payload(made.tobytes(), *made.shape), "origin": "client",
    }  # fmt: skip
    return Soft(**(fields | kw))


def kinds(messages: Sequence[Message]) -> set[type[Message]]:
    return {type(message) for message in messages} - {Credit}


@pytest.mark.parametrize("name", ["sender", "receiver"])
def test_a_recent_message_is_replayed_to_its_end(name: str) -> None:
    stage = Stage(name)
    assert stage.wait(2 * ACTIVE_S) == []  # nothing has come yet
    stage.handle(encode() if name == "sender" else soft(stage))
    replayed = stage.wait(ACTIVE_S)
    assert kinds(replayed) == {Soft if name == "sender" else Result}
    most = ACTIVE_S / EVERY_S
    assert most / 2 < stage.warmup.replays <= most
    assert len([m for m in replayed if not isinstance(m, Credit)]) == stage.warmup.replays
    assert stage.wait(ACTIVE_S) == []
    assert stage.warmup.wait_s(stage.now) == math.inf


def test_a_replay_has_no_visible_effect() -> None:
    stage = Stage("receiver")
    stage.handle(soft(stage))
    asked, batches = stage.backend.asked, stage.worker.batch_sizes
    assert stage.wait(ACTIVE_S)
    assert stage.sent == []
    assert (stage.backend.asked, stage.worker.batch_sizes) == (asked, batches)
    assert stage.worker.idle
    assert set(stage.backend.warmed) == {()}  # no batch reaches the device


def test_a_text_is_replayed_up_to_the_device() -> None:
    stage = Stage("receiver")
    rows = (Row(os.urandom(16), size=6),)
    stage.handle(Text(direct_wire("receiver"), TASK.task_id, rows, ("a film",), origin="client"))
    assert kinds(stage.wait(ACTIVE_S)) == {Result}
    assert set(stage.backend.warmed) == {("a film",)}


@pytest.mark.parametrize(
    "message",
    [
        encode(["a", "b"]),
        encode(["x" * (1 << 19)]),
        encode(task=FREE),
        encode(channel=Channel.TEXT),
        encode(mode=Mode.KEEP),
        replace(encode(), task="0" * 64),
        replace(encode(), wire="sender->stranger"),
        replace(encode(), rows=(encode().rows[0]._replace(question="Who?"),)),
    ],
    ids=[
        "two rows",
        "long",
        "free text",
        "text",
        "keep",
        "unknown task",
        "unknown wire",
        "question",
    ],
)
def test_messages_that_the_stub_cannot_answer_are_not_replayed(
    message: Encode, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage("sender")
    stage.handle(message)
    caplog.clear()
    assert stage.wait(ACTIVE_S) == []
    assert stage.warmup.replays == 0
    assert not caplog.records


def test_a_device_that_fails_to_warm_up_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage("sender")
    stage.handle(encode())
    stage.backend.warm_up = lambda texts: 1 / 0  # type: ignore[assignment, return-value]
    assert kinds(stage.wait(ACTIVE_S)) == {Soft}
    assert len(caplog.records) == 1


def test_after_a_failure_replays_stop_until_the_next_message(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("sender")
    stage.handle(encode())
    with monkeypatch.context() as broken:
        broken.setattr("agentwire.agent.warmup.decode", lambda frames: 1 / 0)
        assert stage.wait(ACTIVE_S) == []
    assert len(caplog.records) == 1
    assert stage.warmup.wait_s(stage.now) == math.inf
    stage.handle(encode())
    assert kinds(stage.wait(ACTIVE_S)) == {Soft}


def test_thousands_of_replays_leave_nothing_behind() -> None:
    stage = Stage("sender")
    for _ in range(40):
        stage.handle(encode())
        assert kinds(stage.wait(ACTIVE_S)) == {Soft}
    assert stage.warmup.replays > 500
    assert stage.warmup._worker.idle
