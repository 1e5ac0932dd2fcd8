"""The bridge's two models in this process, without agents and bus.

The backends are those of the agents, called by one thread each, and the payload is handed over in
memory. Batches overlap if the models have devices of their own. Two models that share the CPU take
turns instead, each with all threads, which is the faster way to use the cores.
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
from agentwire.benchmark.drive import MessageStats
from agentwire.errors import BridgeError
from agentwire.model.backend import Backend, Encoded, Job, Pipelined, Scored
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import TaskSpec

T = TypeVar("T", Encoded, Scored)


class Reference:
    """Both ends of one wire; call it with the texts of a message. Raises InputError."""

    def __init__(self, sender: AgentSpec, receiver: AgentSpec, wire: str, task: TaskSpec) -> None:
        folder = next((b.folder for b in sender.bridges if b.wire == wire), None)
        if folder is None:
            raise BridgeError(f"Wire {wire} has no bridge.", hint="Train one: `agentwire train`.")
        self._task = task
        threads = _threads(sender, receiver)
        self._sender, self._receiver = (
            load_backend(spec.model_copy(update={"threads": threads}), lambda stage, done: None)
            for spec in (sender, receiver)
        )
        bridge = self._sender.add_bridge(Path(folder))
        if bridge.sizes:
            raise BridgeError(
                f"The reference does not run reader bridges, such as {bridge.name}.",
                hint="Measure a bridge with one size.",
            )
        self._bridge = bridge.fingerprint
        self._receiver.prepare(task)
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="sender")
        self._scoring = (
            self._encoding
            if sender.device == receiver.device
            else ThreadPoolExecutor(1, thread_name_prefix="receiver")
        )
        self._waiting = ThreadPoolExecutor(16, thread_name_prefix="waiting")

    async def __call__(self, texts: Sequence[str]) -> MessageStats:
        start = time.perf_counter()
        sender, receiver, task = self._sender, self._receiver, self._task
        encoded = await self._call(
            self._encoding,
            sender,
            lambda backend: backend.begin_encode(texts, self._bridge),
            lambda: sender.encode(texts, self._bridge),
        )
        scored = await self._call(
            self._scoring,
            receiver,
            lambda backend: backend.begin_score_soft(encoded.payload, task),
            lambda: receiver.score_soft(encoded.payload, task),
        )
        stages = {**encoded.stages, **scored.stages}
        waited = (time.perf_counter() - start) * 1000 - sum(stages.values())
        stages["queue"] = max(0.0, waited)
        return MessageStats(stages, encoded.payload[0].nbytes)

    async def _call(
        self,
        pool: ThreadPoolExecutor,
        backend: Backend,
        begin: Callable[[Pipelined], Job[T] | None],
        compute: Callable[[], T],
    ) -> T:
        """Call in the backend's thread; wait for a job that this only begins in another."""
        loop = asyncio.get_running_loop()

        def work() -> Job[T] | T:
            job = begin(backend) if isinstance(backend, Pipelined) else None
            return compute() if job is None else job

        found = await loop.run_in_executor(pool, work)
        if isinstance(found, Encoded | Scored):
            return found
        return await loop.run_in_executor(self._waiting, found.result)

    def close(self) -> None:
        for pool in (self._encoding, self._scoring, self._waiting):
            pool.shutdown(cancel_futures=True)


def _threads(sender: AgentSpec, receiver: AgentSpec) -> int | None:
    """All that this process may use, if both models compute on the CPU."""
    if sender.device != "cpu" or receiver.device != "cpu":
        return None
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
