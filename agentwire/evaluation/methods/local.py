"""Baselines that run in the runner's own process: fitted on first use, nothing crosses the bus.

They need the models' weights once more than the agents do, in this process. Their rows carry 0
payload bytes and the channel ``text``: whatever reads the text here did not get it as soft tokens.
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
from agentwire.evaluation.methods.base import MethodSpec, Tell
from agentwire.runtime.reply import Reply
from agentwire.scenario.resolve import Resolved
from agentwire.wire.messages import Channel

if TYPE_CHECKING:
    from torch import Tensor

    from agentwire.evaluation.methods.base import Outcome
    from agentwire.runtime.runtime import Runtime
    from agentwire.training.baselines.fitted import Fitted
    from agentwire.training.baselines.setting import Setting


@dataclass(slots=True)
class _Host:
    """What a run's baselines share: models and states, and one computation at a time."""

    setting: Setting
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    learned: dict[str, Fitted] = field(default_factory=dict)


_HOSTS: WeakKeyDictionary[Runtime, _Host] = WeakKeyDictionary()


def host_of(runtime: Runtime, resolved: Resolved) -> _Host:
    """The run's host; models and states are loaded when first asked for.

    Raises:
        ScenarioError: the scenario has nothing to fit baselines on.
    """
    if runtime not in _HOSTS:
        from agentwire.training.baselines.setting import Setting

        _HOSTS[runtime] = _Host(Setting(resolved, Config.from_env(), lambda stage, part: None))
    return _HOSTS[runtime]


async def in_thread(host: _Host, work: Callable[[], Tensor]) -> list[list[float]]:
    """Label log-likelihoods of a batch, computed beside the event loop."""

    def compute() -> list[list[float]]:
        found: list[list[float]] = work().log_softmax(-1).tolist()
        return found

    async with host.lock:
        return await anyio.to_thread.run_sync(compute)


def local_reply(scores: Sequence[float], labels: Sequence[str], ms: float) -> Reply:
    """The reply to one row of a batch that took ``ms``."""
    best = max(range(len(labels)), key=lambda i: scores[i])
    return Reply(
        request_id=uuid.uuid4().hex,
        label=labels[best],
        label_index=best,
        scores=dict(zip(labels, scores, strict=True)),
        text=None,
        channel=Channel.TEXT,
        reason="",
        stages={"decode": ms},
        latency_ms=ms,
        payload_bytes=0,
    )


async def answered(host: _Host, work: Callable[[], Tensor]) -> list[Outcome]:
    """Replies from the label logits [n, L] that ``work`` computes."""
    start = time.perf_counter()
    scores = await in_thread(host, work)
    ms = (time.perf_counter() - start) * 1000
    return [local_reply(row, host.setting.task.labels, ms) for row in scores]


def baseline(name: str, title: str, describe: Callable[[Resolved], str]) -> MethodSpec:
    """The method of a baseline in ``baseline.fitting``."""

    async def prepare(runtime: Runtime, resolved: Resolved, tell: Tell) -> None:
        from agentwire.training.baselines.fitting import fitted

        host = host_of(runtime, resolved)

        def told(stage: str, fraction: float) -> None:
            anyio.from_thread.check_cancelled()  # Ctrl-C ends a training, too
            anyio.from_thread.run_sync(tell, stage, fraction)

        def fit() -> Fitted:
            host.setting.tell = told
            try:
                return fitted(host.setting, name)
            finally:
                host.setting.tell = lambda stage, fraction: None

        async with host.lock:
            host.learned[name] = await anyio.to_thread.run_sync(fit)

    async def send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
        from agentwire.training.baselines.fitting import answers

        host = host_of(runtime, resolved)
        learned = host.learned[name]
        return await answered(host, lambda: answers(host.setting, name, learned, texts))

    return MethodSpec(name, title, describe, send, prepare=prepare)
