"""The bridge's two models in this process: what agents and bus are held against.

The same backends as in the agents, called by one thread each, with the payload handed over in
memory: batches overlap where the two models have devices of their own. On one device (two models
that share the CPU's cores) they take turns instead, each with all threads, which is the faster way
to use them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agentwire.agent.service import load_backend
from agentwire.benchmark.drive import Answer
from agentwire.errors import BridgeError
from agentwire.model.backend import Backend, Encoded, Job, Pipelined, Scored
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import TaskSpec

T = TypeVar("T", Encoded, Scored)


class Reference:
    """Both ends of one wire.

    Args:
        sender, receiver: what the agents are born with.
        wire: name of the wire.
        task: what the receiver is asked.

    Raises:
        InputError: a model or the bridge cannot be loaded.
    """

    def __init__(self, sender: AgentSpec, receiver: AgentSpec, wire: str, task: TaskSpec) -> None:
        folder = next((b.folder for b in sender.bridges if b.wire == wire), None)
        if folder is None:
            raise BridgeError(f"wire {wire} has no bridge.", hint="Train one: `agentwire train`.")
        self._task = task
        threads = _threads(sender, receiver)
        self._sender = _load(sender, threads)
        self._receiver = _load(receiver, threads)
        self._bridge = self._sender.add_bridge(Path(folder)).fingerprint
        self._receiver.prepare(task)
        first = ThreadPoolExecutor(1, thread_name_prefix="sender")
        together = sender.device == receiver.device
        second = first if together else ThreadPoolExecutor(1, thread_name_prefix="receiver")
        self._pools = (first, second)
        self._waiting = ThreadPoolExecutor(16, thread_name_prefix="waiting")

    async def __call__(self, texts: Sequence[str]) -> Answer:
        """One message: encode, then score."""
        start = time.perf_counter()
        sender, receiver, task = self._sender, self._receiver, self._task
        encoded: Encoded = await self._call(
            0,
            sender,
            lambda one: one.begin_encode(texts, self._bridge),
            lambda: sender.encode(texts, self._bridge),
        )
        scored: Scored = await self._call(
            1,
            receiver,
            lambda one: one.begin_score_soft(encoded.payload, task),
            lambda: receiver.score_soft(encoded.payload, task),
        )
        stages = {**encoded.stages, **scored.stages}
        waited = (time.perf_counter() - start) * 1000 - sum(stages.values())
        stages["queue"] = max(0.0, waited)
        return Answer(stages, encoded.payload[0].nbytes)

    async def _call(
        self,
        pool: int,
        backend: Backend,
        begin: Callable[[Pipelined], Job[T] | None],
        compute: Callable[[], T],
    ) -> T:
        """In the backend's own thread; what that only begins is waited for in another."""
        loop = asyncio.get_running_loop()

        def work() -> Job[T] | T:
            job = begin(backend) if isinstance(backend, Pipelined) else None
            return compute() if job is None else job

        found = await loop.run_in_executor(self._pools[pool], work)
        if isinstance(found, Encoded | Scored):
            return found
        return await loop.run_in_executor(self._waiting, found.result)

    def close(self) -> None:
        for pool in (*self._pools, self._waiting):
            pool.shutdown(cancel_futures=True)


def _threads(sender: AgentSpec, receiver: AgentSpec) -> int | None:
    """All that this process may use, where both models compute on the CPU."""
    if sender.device != "cpu" or receiver.device != "cpu":
        return None
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def _load(spec: AgentSpec, threads: int | None) -> Backend:
    return load_backend(spec.model_copy(update={"threads": threads}), lambda stage, fraction: None)
