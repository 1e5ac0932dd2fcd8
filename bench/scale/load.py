"""Load on pairs by the Python API and by HTTP, and the CPU time that it costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2
import psutil

from agentwire.runtime import Runtime
from agentwire.runtime.pending import replies_of

IN_FLIGHT = 2  # messages of a pair: one is encoded while another is decoded
WARM_S = 0.7


@dataclass
class Load:
    """What was answered in ``seconds``.

    Attributes:
        rows: of each message.
        milliseconds: of each message, from call to answer.
        runner_s, agents_s: CPU seconds of the runner, and of all agents together (None: they are
            not children of the runner).
    """

    rows: int
    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    runner_s: float = 0.0
    agents_s: float | None = None


class Usage:
    """CPU seconds of a process and of its children since construction."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._children = root.children(recursive=True)
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        return _cpu(self._root), sum(_cpu(child) for child in self._children)

    def since(self) -> tuple[float, float | None]:
        """Of the process, and of its children together (None without children)."""
        now = self._now()
        own, theirs = (after - before for before, after in zip(self._before, now, strict=True))
        return own, theirs if self._children else None


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measured(
    callers: list[Callable[[float, list[float]], Awaitable[None]]],
    rows: int,
    seconds: float,
    root: psutil.Process,
) -> Load:
    """Warm up, then let all callers send for ``seconds``.

    Args:
        callers: each sends until a ``perf_counter`` time and appends milliseconds.
        root: the runner's process.
    """
    await asyncio.gather(*(ask(time.perf_counter() + WARM_S, []) for ask in callers))
    load, usage, start = Load(rows), Usage(root), time.perf_counter()
    await asyncio.gather(*(ask(start + seconds, load.milliseconds) for ask in callers))
    load.seconds = time.perf_counter() - start
    load.runner_s, load.agents_s = usage.since()
    return load


async def ask_runtime(wire: Runtime, pairs: int, batch: int, seconds: float) -> Load:
    """``pairs`` pairs, each with ``IN_FLIGHT`` messages of ``batch`` rows."""

    def caller(pair: int, which: int) -> Callable[[float, list[float]], Awaitable[None]]:
        async def ask(until: float, taken: list[float]) -> None:
            count = 0
            while time.perf_counter() < until:
                texts = [f"{pair} {which} {count} {row}" for row in range(batch)]
                start = time.perf_counter()
                replies_of(await wire.send_batch(f"sender-{pair}", f"receiver-{pair}", texts))
                taken.append((time.perf_counter() - start) * 1000)
                count += 1

        return ask

    callers = [caller(pair, which) for pair in range(pairs) for which in range(IN_FLIGHT)]
    return await measured(callers, batch, seconds, psutil.Process())


async def ask_gateway(url: str, pid: int, pairs: int, clients: int, seconds: float) -> Load:
    """``clients`` HTTP clients for each pair, one text at a time."""
    limits = httpx2.Limits(max_connections=pairs * clients)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as http:

        def caller(pair: int, which: int) -> Callable[[float, list[float]], Awaitable[None]]:
            async def ask(until: float, taken: list[float]) -> None:
                count = 0
                model = f"sender-{pair}->receiver-{pair}"
                while time.perf_counter() < until:
                    message = {"role": "user", "content": f"{pair} {which} {count}"}
                    start = time.perf_counter()
                    body = {"model": model, "messages": [message]}
                    response = await http.post("/chat/completions", json=body)
                    response.raise_for_status()
                    taken.append((time.perf_counter() - start) * 1000)
                    count += 1

            return ask

        callers = [caller(pair, which) for pair in range(pairs) for which in range(clients)]
        return await measured(callers, 1, seconds, psutil.Process(pid))
