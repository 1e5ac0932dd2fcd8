"""A fake backend whose delays pass on a device beside the thread, one batch after the other.

What a GPU is to the agent: work is begun, the thread is free, and the result is looked for. So what
processes and bus add to a device's time can be measured where there is no GPU
(``bench/hops.py``), and the agent's pipeline be tested through real processes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from agentwire.model.backend import Encoded, Job, Scored
from agentwire.model.fake import FakeBackend
from agentwire.spec.agent import FakeModel
from agentwire.wire.messages import TaskSpec

T = TypeVar("T")


class FakeJob(Job[T]):
    """A batch that is done at a certain time, in monotonic seconds."""

    def __init__(self, end: float, made: T) -> None:
        self._end = end
        self._made = made

    def done(self) -> bool:
        return time.monotonic() >= self._end

    def wait(self) -> None:
        time.sleep(max(0.0, self._end - time.monotonic()))

    def result(self) -> T:
        self.wait()
        return self._made


class FakeDevice(FakeBackend):
    """``FakeBackend`` behind the ``Pipelined`` protocol as well; same answers, same faults."""

    def __init__(self, name: str, settings: FakeModel, device: str = "cpu") -> None:
        # The delays are the device's: what is computed here takes none.
        super().__init__(
            name, settings.model_copy(update={"encode_ms": 0.0, "decode_ms": 0.0}), device
        )
        self._encode_ms, self._decode_ms = settings.encode_ms, settings.decode_ms
        self._free_at = 0.0
        self._counts: Counter[str] = Counter()

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded]:
        return self._begin(
            "encode",
            self._encode_ms,
            lambda ms: replace(self.encode(texts, bridge), stages={"encode": ms}),
        )

    def begin_score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Job[Scored]:
        return self._begin(
            "soft",
            self._decode_ms,
            lambda ms: replace(self.score_soft(payload, task), stages={"decode": ms}),
        )

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored]:
        return self._begin(
            "text",
            self._decode_ms,
            lambda ms: replace(self.score_text(texts, task), stages={"decode": ms}),
        )

    def summary(self) -> str:
        return ", ".join(f"{what} {count}" for what, count in sorted(self._counts.items()))

    def _begin(self, what: str, ms: float, make: Callable[[float], T]) -> Job[T]:
        """The answer is made at once, while the device's time passes."""
        self._counts[what] += 1
        begin = max(self._free_at, time.monotonic())
        self._free_at = begin + ms / 1000
        return FakeJob(self._free_at, make(ms))
