"""The way of a message through an agent, gone over and over while the agent waits.

A thread that has waited for some milliseconds finds neither its code nor its data in the
processor's caches, and takes several times as long for what it does next (docs/design/engine.md).
While little time passes between messages, an agent that waits therefore handles a copy of the last
one again: decoded, checked, batched, answered and encoded by the code that will do it for the next
one, in a worker of its own whose model answers at once and whose messages go nowhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from agentwire.agent.agreements import Agreements
from agentwire.agent.fallback import BridgeState, knows_prompt
from agentwire.agent.worker import Worker
from agentwire.bus.lanes import Work, body_bytes
from agentwire.model.backend import Backend, Encoded, Rehearsed, Scored
from agentwire.spec.agent import AgentSpec
from agentwire.wire.codec import decode, encode
from agentwire.wire.messages import (
    BridgeIdentity,
    Channel,
    Credit,
    Define,
    Encode,
    Envelope,
    Message,
    Mode,
    Row,
    Soft,
    TaskSpec,
    Text,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

EVERY_S: Final = 0.0005
"""Between two rehearsals: the caches keep what was used so lately."""
LATELY_S: Final = 0.02
"""After the last message, an agent rehearses for so long."""
LARGEST_BYTES: Final = 256 * 1024
"""Larger messages come from who cares for throughput, and take long."""
REPLY_BYTES: Final = 1024 * 1024
ID_BYTES: Final = 16
MOST_RMS: Final = 30_000.0  # that float16 holds
ENVELOPE: Final = Envelope(bytes(16), 0, 0)


class Warmup:
    """Handles the last message again and again.

    Only a row that came alone is rehearsed: where rows come together, batches overlap, and what a
    message costs does not show.

    Args:
        spec, bridges: of the agent.
        backend: its model.
        agreements: of its worker, which alone changes them.
        clock: monotonic seconds.

    Attributes:
        played: rehearsals so far.
    """

    def __init__(
        self,
        spec: AgentSpec,
        backend: Backend,
        bridges: Mapping[str, BridgeIdentity | None],
        agreements: Agreements,
        clock: Callable[[], float],
    ) -> None:
        self.played = 0
        self._clock = clock
        self._agreements = agreements
        understudy = _Understudy(backend, bridges)
        self._worker = Worker(
            spec.model_copy(update={"max_wait_ms": 0.0}),  # no company comes
            understudy,
            bridges,
            self._send,
            clock,
            agreements=agreements,
            reply_bytes=REPLY_BYTES,
        )
        self._worker.start()
        self._funded: set[str] = set()  # wires that were given their first credit
        self._spent: Credit | None = None
        self._message: Work | None = None
        self._frames: list[bytes | memoryview] = []
        self._until = self._due = -math.inf

    def note(self, message: Message, now: float) -> None:
        """Told every message that the agent takes in."""
        if isinstance(message, Define):
            self._worker.handle(message, now)
        elif isinstance(message, Encode | Soft | Text):
            self._until, self._due = now + LATELY_S, now + EVERY_S
            self._message, self._frames = message, []

    def wait_s(self, now: float) -> float:
        """Seconds until the next rehearsal is due; ``math.inf``: none will be."""
        if self._message is None or now >= self._until:
            return math.inf
        return max(0.0, self._due - now)

    def step(self, now: float) -> None:
        """Rehearses, if it is time to. Never raises."""
        message = self._message
        if message is None or self.wait_s(now) > 0:
            return
        try:
            if self._is_fit(message):
                self._play(message, now)
            else:
                self._message = None
        except Exception as error:  # the play is off; what is rehearsed goes on
            log.warning("a rehearsal failed", exc_info=error)
            self._message = None
        self._due = self._clock() + EVERY_S

    def _is_fit(self, message: Work) -> bool:
        """Whether the message asks for what an understudy can answer."""
        task = self._worker.task(message.task)
        if len(message.rows) > 1 or body_bytes(message) > LARGEST_BYTES:
            return False
        if task is None or not task.labels or task.form == "kept":
            return False
        if not isinstance(message, Encode):
            return True
        agreed = self._agreements
        if message.channel is not Channel.SOFT or message.mode is not Mode.FORWARD:
            return False
        if not agreed.sends_on(message.wire):
            return False
        bridge = agreed.bridge(message.wire)
        accepted = agreed.state(message.wire) is BridgeState.ACCEPTED
        return accepted and bridge is not None and knows_prompt(bridge, task)

    def _play(self, message: Work, now: float) -> None:
        if not self._frames:
            self._frames = encode(message, ENVELOPE)
        _, copy = decode(self._frames)
        assert isinstance(copy, Encode | Soft | Text)
        self.played += 1
        # An id of its own, or its answer would be known; no deadline, which would pass.
        number = self.played.to_bytes(ID_BYTES, "big")
        rows = tuple(Row(number, None, row.trace_id, row.size) for row in copy.rows)
        if message.wire not in self._funded:
            self._funded.add(message.wire)
            self._spent = Credit(message.wire, 2, 2 * LARGEST_BYTES)
        spent, self._spent = self._spent, None
        if spent is not None:
            self._worker.handle(spent, now)
        self._worker.handle(replace(copy, rows=rows, solo=False), now)
        self._worker.run_once()

    def _send(self, message: Message) -> None:
        """As far as the bus would do it in this thread."""
        encode(message, ENVELOPE)
        if isinstance(message, Soft | Text):
            self._spent = Credit(message.wire, 1, body_bytes(message))


class _Ready(Generic[T]):
    """What the understudy answers, at once."""

    def __init__(self, value: T) -> None:
        self._value = value

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return

    def result(self) -> T:
        return self._value


class _Understudy:
    """In the model's place: every answer is the same, and costs nothing."""

    def __init__(self, backend: Backend, bridges: Mapping[str, BridgeIdentity | None]) -> None:
        self.identity = backend.identity
        self._backend = backend if isinstance(backend, Rehearsed) else None
        self._encoded = {b.fingerprint: _encoding(b) for b in bridges.values() if b is not None}

    def prepare(self, task: TaskSpec) -> None:
        return

    def begin_encode(self, texts: Sequence[str], bridge: str) -> _Ready[Encoded]:
        self._go(texts)
        return _Ready(self._encoded[bridge])

    def begin_score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> _Ready[Scored]:
        self._go(())
        return self._score(len(payload), task)

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> _Ready[Scored]:
        self._go(texts)
        return self._score(len(texts), task)

    def _go(self, texts: Sequence[str]) -> None:
        if self._backend is None:
            return
        try:
            self._backend.rehearse(texts)
        except Exception as error:  # what fails here may work with a batch
            log.warning("rehearsals leave the device out from now on", exc_info=error)
            self._backend = None

    def _score(self, rows: int, task: TaskSpec) -> _Ready[Scored]:
        scores = np.full((rows, len(task.labels)), -1.0, dtype=np.float32)
        return _Ready(Scored(scores, {"decode": 1.0}, [(1, 1)] * rows))

    def summary(self) -> str:
        return ""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"a rehearsal does not {name}")


def _encoding(bridge: BridgeIdentity) -> Encoded:
    low, high = bridge.rms_range
    sane = min((low + high) / 2, MOST_RMS)
    payload = np.full((1, bridge.soft_tokens, bridge.width), sane, dtype=np.float16)
    rms = np.full((1, bridge.soft_tokens), sane, dtype=np.float32)
    return Encoded(payload, {"tokenize": 0.1, "encode": 1.0}, rms)
