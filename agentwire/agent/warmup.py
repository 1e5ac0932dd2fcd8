"""Warm-up: an idle agent replays its last message to keep code and data in the CPU caches.

After a few idle milliseconds a thread runs several times slower at first, because its code and data
have left the caches (docs/design/engine.md). For a short time after each message an idle agent
therefore handles a copy of it again: decode, validate, batch, answer, encode. A second worker does
this, with a stub model that answers at once; its messages are not sent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from agentwire.agent.validation import Agreements
from agentwire.agent.worker import Worker
from agentwire.model.backend import Backend, Encoded, Scored, SupportsWarmup
from agentwire.spec.agent import AgentSpec
from agentwire.wire.codec import decode, encode
from agentwire.wire.credit import body_bytes
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
    WorkMessage,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

EVERY_S: Final = 0.0005
"""Interval between replays."""
ACTIVE_S: Final = 0.02
"""Replays stop this long after the last message."""
LARGEST_BYTES: Final = 256 * 1024
"""Larger messages are not replayed: they take long, and their clients need throughput."""
REPLY_BYTES: Final = 1024 * 1024
ID_BYTES: Final = 16
MAX_RMS: Final = 30_000.0  # fits in float16
ENVELOPE: Final = Envelope(bytes(16), 0, 0)


class Warmup:
    """Replays the agent's last message.

    Only messages of one row are replayed: batches of several rows overlap, which hides the cost.

    Args:
        spec, bridges: of the agent.
        backend: its model.
        agreements: of its worker; not changed here.
        clock: monotonic seconds.

    Attributes:
        replays: number of replays so far.
    """

    def __init__(
        self,
        spec: AgentSpec,
        backend: Backend,
        bridges: Mapping[str, BridgeIdentity | None],
        agreements: Agreements,
        clock: Callable[[], float],
    ) -> None:
        self.replays = 0
        self._clock = clock
        self._agreements = agreements
        self._worker = Worker(
            spec.model_copy(update={"max_wait_ms": 0.0}),
            _StubBackend(backend, bridges),
            bridges,
            self._send,
            clock,
            agreements=agreements,
            reply_bytes=REPLY_BYTES,
        )
        self._worker.start()
        self._granted: set[str] = set()  # wires that have received their first credit
        self._credit: Credit | None = None  # to return before the next replay
        self._message: WorkMessage | None = None
        self._frames: list[bytes | memoryview] = []
        self._until = self._due = -math.inf

    def observe(self, message: Message, now: float) -> None:
        """Call with every message that the agent receives."""
        if isinstance(message, Define):
            self._worker.handle(message, now)
        elif isinstance(message, Encode | Soft | Text):
            self._until, self._due = now + ACTIVE_S, now + EVERY_S
            self._message, self._frames = message, []

    def wait_s(self, now: float) -> float:
        """Seconds until the next replay is due; ``math.inf`` if none is."""
        if self._message is None or now >= self._until:
            return math.inf
        return max(0.0, self._due - now)

    def replay(self, now: float) -> None:
        """Replays the last message if that is due. Never raises."""
        message = self._message
        if message is None or self.wait_s(now) > 0:
            return
        try:
            if self._can_replay(message):
                self._replay(message, now)
            else:
                self._message = None
        except Exception as error:  # real messages must not suffer
            log.warning("warm-up replay failed", exc_info=error)
            self._message = None
        self._due = self._clock() + EVERY_S

    def _can_replay(self, message: WorkMessage) -> bool:
        """Whether the stub model can answer the message."""
        task = self._worker.task(message.task)
        if len(message.rows) > 1 or body_bytes(message) > LARGEST_BYTES:
            return False
        if message.rows[0].question:
            return False
        if task is None or not task.labels or task.form == "kept":
            return False
        if not isinstance(message, Encode):
            return not (isinstance(message, Soft) and message.bridge in self._agreements.readers)
        agreed = self._agreements
        bridge = agreed.outgoing.get(message.wire)
        if bridge is not None and bridge.sizes:
            return False
        if message.channel is not Channel.SOFT or message.mode is not Mode.FORWARD:
            return False
        if message.wire not in agreed.accepted:
            return False
        return agreed.obstacle(message.wire, task, message.mode) is None

    def _replay(self, message: WorkMessage, now: float) -> None:
        if not self._frames:
            self._frames = encode(message, ENVELOPE)
        _, copy = decode(self._frames)
        assert isinstance(copy, Encode | Soft | Text)
        self.replays += 1
        # A new id, or the reply would come from the cache; no deadline, since it would expire.
        number = self.replays.to_bytes(ID_BYTES, "big")
        rows = tuple(Row(number, None, row.trace_id, row.size) for row in copy.rows)
        if message.wire not in self._granted:
            self._granted.add(message.wire)
            self._credit = Credit(message.wire, 2, 2 * LARGEST_BYTES)
        credit, self._credit = self._credit, None
        if credit is not None:
            self._worker.handle(credit, now)
        self._worker.handle(replace(copy, rows=rows, solo=False), now)
        self._worker.run_once()

    def _send(self, message: Message) -> None:
        """Does the part of sending that runs in this thread."""
        encode(message, ENVELOPE)
        if isinstance(message, Soft | Text):
            self._credit = Credit(message.wire, 1, body_bytes(message))


class _DoneJob(Generic[T]):
    def __init__(self, value: T) -> None:
        self._value = value

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return

    def result(self) -> T:
        return self._value


class _StubBackend:
    """Answers every batch at once with the same values."""

    def __init__(self, backend: Backend, bridges: Mapping[str, BridgeIdentity | None]) -> None:
        self.identity = backend.identity
        self._backend = backend if isinstance(backend, SupportsWarmup) else None
        self._encoded = {b.fingerprint: _encoded(b) for b in bridges.values() if b is not None}

    def prepare(self, task: TaskSpec) -> None:
        return

    def begin_encode(self, texts: Sequence[str], bridge: str) -> _DoneJob[Encoded]:
        self._touch_device(texts)
        return _DoneJob(self._encoded[bridge])

    def begin_score_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec
    ) -> _DoneJob[Scored]:
        self._touch_device(())
        return self._score(len(payload), task)

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> _DoneJob[Scored]:
        self._touch_device(texts)
        return self._score(len(texts), task)

    def _touch_device(self, texts: Sequence[str]) -> None:
        if self._backend is None:
            return
        try:
            self._backend.warm_up(texts)
        except Exception as error:  # a real batch may still work
            log.warning("warm-up leaves the device out from now on", exc_info=error)
            self._backend = None

    def _score(self, rows: int, task: TaskSpec) -> _DoneJob[Scored]:
        scores = np.full((rows, len(task.labels)), -1.0, dtype=np.float32)
        return _DoneJob(Scored(scores, {"decode": 1.0}, [(1, 1)] * rows))

    def summary(self) -> str:
        return ""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"warm-up does not use {name}")


def _encoded(bridge: BridgeIdentity) -> Encoded:
    low, high = bridge.rms_range
    rms_value = min((low + high) / 2, MAX_RMS)
    payload = np.full((1, bridge.soft_tokens, bridge.width), rms_value, dtype=np.float16)
    rms = np.full((1, bridge.soft_tokens), rms_value, dtype=np.float32)
    return Encoded(payload, {"tokenize": 0.1, "encode": 1.0}, rms)
