"""Overlapping batches: what a worker does while the device computes, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from agentwire.agent.worker import MAX_RUNNING, Worker
from agentwire.errors import NackCode
from agentwire.model.backend import Encoded, Job, Scored
from agentwire.model.fake import FakeBackend, answer
from agentwire.runtime.pending import from_scores
from agentwire.spec.agent import AgentSpec, FakeModel, OutgoingBridge
from agentwire.wire.messages import (
    Accept,
    Cancel,
    Channel,
    Credit,
    Define,
    Encode,
    Message,
    Nack,
    Offer,
    Payload,
    RelaySpec,
    Row,
    Soft,
    TaskSpec,
    Text,
    direct_wire,
)
from agentwire.wire.messages import Result as ResultMessage

WIRE = "sender->receiver"
TASK = TaskSpec("t", "Answer:", "{text}\nAnswer:", ("good", "bad"))
SUMMARY = TaskSpec("s", "Answer:", "{text}", ("good", "bad"), RelaySpec("Sum up: {text}", 2))
T = TypeVar("T")


class HeldJob(Generic[T]):
    """A job that finishes when the test says so."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self.compute, self.is_done = compute, False

    def done(self) -> bool:
        return self.is_done

    def wait(self) -> None:
        self.is_done = True

    def result(self) -> T:
        self.wait()
        return self.compute()


class Device(FakeBackend):
    """A fake model whose jobs finish when the test says so."""

    def __init__(self, settings: FakeModel) -> None:
        super().__init__("sender", settings)
        self.jobs: list[HeldJob[Encoded] | HeldJob[Scored]] = []
        self.refuses = False

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded] | None:
        if self.refuses:
            raise RuntimeError("no")
        job = HeldJob(lambda: self.encode(texts, bridge))
        self.jobs.append(job)
        return job

    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> Job[Scored] | None:
        return None

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored] | None:
        job = HeldJob(lambda: self.score_text(texts, task))
        self.jobs.append(job)
        return job

    def summary(self) -> str:
        return f"{len(self.jobs)} begun"


class Rig:
    def __init__(self, **fake: object) -> None:
        self.now, self.sent, self.busy = 100.0, [], []
        self.long_batches = 0
        spec = AgentSpec(
            name="sender",
            backend="fake",
            model="sender",
            max_batch=2,
            fake=FakeModel.model_validate(fake),
            bridges=(OutgoingBridge(wire=WIRE, receiver="receiver", folder="fake:receiver"),),
        )
        self.device = Device(spec.fake)
        bridges = {WIRE: self.device.add_bridge(Path("fake:receiver"))}
        self.worker = Worker(
            spec,
            self.device,
            bridges,
            self.sent.append,
            lambda: self.now,
            on_busy=self.busy.append,
            on_long_batch=self._on_long_batch,
        )
        self.worker.start()
        self.handle(Define(TASK), Define(SUMMARY), Credit(WIRE, 64, 1 << 20))
        self.handle(*(Accept(WIRE, o.bridge.fingerprint) for o in self.take(Offer)))
        self.sent.clear()

    sent: list[Message]
    busy: list[float | None]

    def _on_long_batch(self) -> None:
        self.long_batches += 1

    def handle(self, *messages: Message) -> None:
        for message in messages:
            self.worker.handle(message, self.now)

    def ask(self, *texts: str, task: TaskSpec = TASK, channel: Channel = Channel.SOFT) -> None:
        rows = tuple(Row(text.encode().ljust(16, b"-"), size=len(text)) for text in texts)
        self.handle(Encode(WIRE, task.task_id, channel, "text", rows, texts))

    def run(self) -> None:
        self.now += 0.01
        while self.worker.run_once():
            pass

    def take(self, kind: type[T]) -> list[T]:
        found = [m for m in self.sent if isinstance(m, kind)]
        self.sent[:] = [m for m in self.sent if not isinstance(m, kind)]
        return found

    def names(self) -> list[list[str]]:
        """The rows of each Soft message that was sent."""
        return [
            [row.request_id.decode().rstrip("-") for row in soft.rows] for soft in self.take(Soft)
        ]


def test_two_batches_run_at_once_and_no_third() -> None:
    rig = Rig()
    rig.ask("a", "b", "c", "d", "e", "f")
    rig.run()
    assert len(rig.device.jobs) == MAX_RUNNING == 2
    assert rig.names() == []
    assert rig.worker.running
    assert rig.worker.next_event() == math.inf  # the third is due, but there is no room


def test_replies_are_sent_in_the_order_in_which_batches_began() -> None:
    rig = Rig()
    rig.ask("a", "b", "c", "d", "e", "f")
    rig.run()
    rig.device.jobs[1].is_done = True
    rig.run()
    assert rig.names() == []
    rig.device.jobs[0].is_done = True
    assert rig.worker.next_event() == -math.inf
    rig.run()
    assert rig.names() == [["a", "b"], ["c", "d"]]
    assert len(rig.device.jobs) == 3
    rig.device.jobs[2].is_done = True
    rig.run()
    assert rig.names() == [["e", "f"]]
    assert rig.worker.idle
    assert not rig.worker.running


def test_overlapping_does_not_change_replies() -> None:
    rig = Rig()
    texts = ["one", "two", "three", "four"]
    rows = tuple(Row(text.encode().ljust(16, b"-"), size=len(text)) for text in texts)
    rig.handle(Text(direct_wire("sender"), TASK.task_id, rows, tuple(texts)))
    rig.run()
    for job in rig.device.jobs:
        job.is_done = True
    rig.run()
    labels = []
    for result in rig.take(ResultMessage):
        scores = np.frombuffer(result.scores, dtype="<f4").reshape(-1, result.labels)
        labels += [TASK.labels[i] for i in scores.argmax(axis=1)]
    assert labels == [answer(text, TASK.labels) for text in texts]


def test_a_row_cancelled_while_it_is_computed_gets_no_reply() -> None:
    rig = Rig()
    rig.ask("a", "b")
    rig.run()
    rig.handle(Cancel(WIRE, (b"a".ljust(16, b"-"),)))
    rig.device.jobs[0].is_done = True
    rig.run()
    assert rig.names() == [["b"]]
    assert rig.worker.idle


def test_a_batch_that_cannot_overlap_ends_after_running_batches() -> None:
    rig = Rig()
    rig.ask("a", "b")
    rig.ask("c", "d", task=SUMMARY, channel=Channel.TEXT)  # relayed: one call, nothing to begin
    rig.run()
    kinds = [type(message) for message in rig.sent if isinstance(message, Soft | Text)]
    assert kinds == [Soft, Text]


def test_a_batch_that_fails_to_begin_is_computed_row_by_row() -> None:
    rig = Rig()
    rig.device.refuses = True
    rig.ask("a", "b")
    rig.run()
    assert rig.names() == [["a", "b"]]


def test_a_batch_that_fails_on_the_device_is_computed_row_by_row() -> None:
    rig = Rig(raise_on="bad")
    rig.ask("bad", "good")
    rig.run()
    rig.device.jobs[0].is_done = True
    rig.run()
    assert rig.names() == [["good"]]
    assert rig.worker.idle


def test_on_busy_reports_the_oldest_running_batch() -> None:
    rig = Rig()
    rig.ask("a", "b", "c", "d")
    rig.run()
    began = rig.now
    assert rig.busy == [began]
    rig.now += 1.0
    rig.device.jobs[0].is_done = True
    rig.worker.run_once()
    assert rig.busy[-1] == rig.now  # the second one's turn
    rig.device.jobs[1].is_done = True
    rig.run()
    assert rig.busy[-1] is None
    assert not rig.long_batches  # this thread only waited for the device


def test_waiting_for_another_batch_is_queue_time() -> None:
    rig = Rig()
    rig.ask("a", "b", "c", "d")
    rig.run()
    rig.now += 3.0
    for job in rig.device.jobs:
        job.is_done = True
    rig.run()
    for soft in rig.take(Soft):
        spent = sum(ms for stage, ms in soft.stages.items() if stage != "queue")
        assert soft.stages["queue"] + spent == pytest.approx(3020, abs=1.0)


class Receiving(Device):
    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> Job[Scored] | None:
        job = HeldJob(lambda: self.score_soft(payload, task))
        self.jobs.append(job)
        return job


def test_payloads_are_checked_before_the_device_begins() -> None:
    sent: list[Message] = []
    spec = AgentSpec(name="receiver", backend="fake", model="receiver", incoming=(WIRE,))
    device = Receiving(spec.fake)
    worker = Worker(spec, device, {}, sent.append, lambda: 100.0)
    worker.start()
    source = FakeBackend("sender", FakeModel(nan_on="nan"))
    bridge = source.add_bridge(Path("fake:sender"))  # the name that ``Device`` gives its model
    worker.handle(Define(TASK), 100.0)
    worker.handle(Offer(WIRE, bridge), 100.0)
    made = source.encode(["a", "nan", "c"], bridge.fingerprint).payload
    rows = tuple(Row(bytes([n]) * 16) for n in range(3))
    payload = Payload(made.tobytes(), *made.shape)
    worker.handle(Soft(WIRE, TASK.task_id, bridge.fingerprint, rows, payload, {}), 90.0)
    sent.clear()
    while worker.run_once():
        pass
    assert not device.jobs  # nothing was begun with it
    (nack,) = (m for m in sent if isinstance(m, Nack))
    assert (nack.rows[0].request_id, nack.code) == (rows[1].request_id, NackCode.BAD_PAYLOAD)
    (result,) = (m for m in sent if isinstance(m, ResultMessage))
    assert [row.request_id for row in result.rows] == [rows[0].request_id, rows[2].request_id]
    best = [TASK.labels[row.index(max(row))] for row in from_scores(result.scores, 2, 2)]
    assert best == [answer(text, TASK.labels) for text in ("a", "c")]
    assert worker.idle
    sound = Payload(made[:1].tobytes(), 1, *made.shape[1:])
    again = (Row(bytes([9]) * 16),)
    worker.handle(Soft(WIRE, TASK.task_id, bridge.fingerprint, again, sound, {}), 90.0)
    worker.run_once()
    assert len(device.jobs) == 1


def test_a_batch_is_expected_to_take_as_long_as_the_last_one_of_its_shape() -> None:
    rig = Rig()
    assert rig.worker.expected_end() == math.inf
    for _ in range(2):
        rig.ask("a", "b")
        rig.run()
        began = rig.now
        rig.now += 0.25
        rig.device.jobs[-1].is_done = True
        rig.worker.run_once()
    rig.ask("c", "d")
    rig.run()
    assert rig.worker.expected_end() == pytest.approx(rig.now + 0.25)
    assert rig.now > began
    rig.ask("e", "f")  # behind it on the device: nobody knows
    rig.worker.run_once()
    assert rig.worker.expected_end() == math.inf
