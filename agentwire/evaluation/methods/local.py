"""Runs baselines in the runner's process: they are fitted before the first batch.

They need the models' weights once more than the agents do. Nothing crosses the bus: their rows have
0 payload bytes and the channel ``text``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import anyio
import anyio.from_thread
import anyio.to_thread

from agentwire.config import Config
from agentwire.download import OnProgress
from agentwire.evaluation.methods.base import MethodSpec
from agentwire.model.backend import TOO_LONG
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import Resolved
from agentwire.training.baselines.baseline import Baseline, Fitted
from agentwire.wire.messages import Channel

if TYPE_CHECKING:
    from torch import Tensor

    from agentwire.runtime.pending import Outcome
    from agentwire.runtime.runtime import Runtime
    from agentwire.training.baselines.context import BaselineContext


@dataclass(slots=True)
class LocalState:
    """What the baselines of one run share. The lock allows one computation at a time."""

    context: BaselineContext
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    fitted: dict[str, Fitted] = field(default_factory=dict)


_STATES: WeakKeyDictionary[Runtime, LocalState] = WeakKeyDictionary()


def _ignore(stage: str, fraction: float) -> None:
    pass


def local_state(runtime: Runtime, resolved: Resolved) -> LocalState:
    """The state of the run; raises ScenarioError where baselines cannot be fitted."""
    if runtime not in _STATES:
        from agentwire.training.baselines.context import BaselineContext  # imports torch

        _STATES[runtime] = LocalState(BaselineContext(resolved, Config.from_env(), _ignore))
    return _STATES[runtime]


async def answer_locally(state: LocalState, compute: Callable[[], Tensor]) -> list[Outcome]:
    """Replies from the label logits [n, L] that ``compute`` returns; it runs in a thread."""
    start = time.perf_counter()
    async with state.lock:
        state.context.unread.clear()
        logits = await anyio.to_thread.run_sync(lambda: compute().log_softmax(-1))
        unread = state.context.unread or [0] * len(logits)
    ms = (time.perf_counter() - start) * 1000
    labels = state.context.task.labels
    return [
        Reply(
            request_id=uuid.uuid4().hex,
            label=labels[best],
            label_index=best,
            scores=dict(zip(labels, scores, strict=True)),
            text=None,
            channel=Channel.TEXT,
            reason=TOO_LONG if left else "",
            stages={"decode": ms},
            latency_ms=ms,
            payload_bytes=0,
            unread=left,
        )
        for scores, best, left in zip(
            logits.tolist(), logits.argmax(-1).tolist(), unread, strict=True
        )
    ]


def baseline_method(name: str, baseline: Baseline) -> MethodSpec:
    """A baseline as a method."""

    async def prepare(runtime: Runtime, resolved: Resolved, progress: OnProgress) -> None:
        from agentwire.training.baselines.fitting import fitted  # imports torch

        state = local_state(runtime, resolved)

        def report(stage: str, fraction: float) -> None:
            anyio.from_thread.check_cancelled()  # lets Ctrl-C end a training
            anyio.from_thread.run_sync(progress, stage, fraction)

        def fit() -> Fitted:
            state.context.progress = report
            try:
                return fitted(state.context, name, baseline)
            finally:
                state.context.progress = _ignore

        async with state.lock:
            state.fitted[name] = await anyio.to_thread.run_sync(fit)

    async def send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
        state = local_state(runtime, resolved)
        learned = state.fitted[name]
        return await answer_locally(
            state, lambda: baseline.answer(state.context, learned, texts).float().cpu()
        )

    return MethodSpec(
        name,
        baseline.title,
        baseline.describe,
        send,
        prepare=prepare,
        uses_soft_tokens=baseline.uses_soft_tokens,
    )
