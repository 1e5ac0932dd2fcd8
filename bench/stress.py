"""Long runs against fake agents: real processes, real sockets, no model.

    python bench/stress.py soak [--messages 1000000] [--minutes 30] [--kill-every 20] [--out ...]
    python bench/stress.py load [--minutes 5] [--factor 2] [--out ...]

``soak`` keeps a few hundred messages of one row outstanding and kills an agent every 20 s, until
all messages are sent or the time is up. Nothing may be lost or wrong. The runner's memory and file
descriptors are sampled, and the slope of a line through the second half is reported. ``load``
alternates between measuring the capacity and offering a multiple of it (open loop). Admitted
requests must be answered at close to capacity and within bounded time; the rest must be refused as
overloaded at once. ``--minutes`` is the time under overload.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chaos.rig import PLENTY, TIMING, Setup, deployment_of
from fakes import TASK
from records import parser_of, provenance, write

from agentwire.agent.launching.limits import AgentLimits
from agentwire.errors import NackCode, RequestError
from agentwire.model.fake import answer
from agentwire.runtime import Runtime
from agentwire.runtime.ledger import Admission

OUTSTANDING = 256
SAMPLE_S = 2.0
MEASURE_S = 6.0
OVERLOAD_S = 30.0
"""One phase of overload; the capacity is measured before and after each."""
QUEUE_S = 0.5
"""Seconds of work that may be outstanding under load; more is refused."""
REFUSALS = 2_000
Run: TypeAlias = tuple[dict[str, float], dict[str, list[float]]]
"""The figures of a run, and of each of its phases in order."""
FAST = Setup(sender={"encode_ms": 0.0}, receiver={"decode_ms": 0.0})


@dataclass
class Counts:
    """What became of requests."""

    sent: int = 0
    answered: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.sent - self.answered - sum(self.errors.values())


def runtime(admission: Admission | None = None) -> Runtime:
    limits = AgentLimits(load_s=60.0, progress_s=60.0, stop_s=5.0, restarts=PLENTY)
    return Runtime(deployment_of(FAST), limits=limits, timing=TIMING, admission=admission)


async def one(wire: Runtime, number: int, counts: Counts, keep_latency: bool = False) -> None:
    """Sends one request and checks its answer."""
    text = f"review number {number}"
    counts.sent += 1
    try:
        reply = await wire.send("sender", "receiver", text, deadline=120.0)
    except RequestError as error:
        counts.errors[error.code.value] += 1
        return
    counts.answered += 1
    counts.wrong += reply.label != answer(text, TASK.labels)
    if keep_latency:
        counts.latencies_ms.append(reply.latency_ms)


async def closed_loop(
    wire: Runtime, counts: Counts, more: Callable[[], bool], outstanding: int = OUTSTANDING
) -> None:
    """Keeps ``outstanding`` requests in flight."""
    numbers = iter(range(10**12))

    async def worker() -> None:
        while more():
            await one(wire, next(numbers), counts)

    await asyncio.gather(*(worker() for _ in range(outstanding)))


# -- soak -----------------------------------------------------------------------------------


async def soak(args: argparse.Namespace) -> Run:
    rng = random.Random(args.seed)
    counts, kills, samples = Counts(), 0, []
    me = psutil.Process()
    start = time.monotonic()
    end = start + args.minutes * 60

    def more() -> bool:
        return bool(counts.sent < args.messages and time.monotonic() < end)

    async with runtime() as wire:
        running = asyncio.create_task(closed_loop(wire, counts, more))

        async def kill() -> None:
            nonlocal kills
            while True:
                await asyncio.sleep(args.kill_every)
                info = wire.agents[rng.choice(["sender", "receiver"])]
                try:
                    os.kill(info.pid, signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    pass

        killing = asyncio.create_task(kill())
        while not running.done():
            memory = me.memory_info().rss / 2**20
            samples.append((time.monotonic() - start, memory, me.num_fds()))
            await asyncio.wait([running], timeout=SAMPLE_S)
        killing.cancel()
        await running
    half = samples[len(samples) // 2 :]
    seconds = time.monotonic() - start
    figures = {
        "messages": counts.sent,
        "minutes": round(seconds / 60, 2),
        "messages_per_s": round(counts.sent / seconds, 1),
        "agents_killed": kills,
        "lost": counts.lost,
        "wrong": counts.wrong,
        "dead_letters": counts.errors["dead_letter"],
        "other_errors": sum(counts.errors.values()) - counts.errors["dead_letter"],
        "memory_mb_at_half": round(half[0][1], 1),
        "memory_mb_at_end": round(half[-1][1], 1),
        "memory_slope_mb_per_hour": slope([(t, mb) for t, mb, _ in half]),
        "descriptors_at_half": half[0][2],
        "descriptors_at_end": half[-1][2],
    }
    return figures, {}


def slope(points: list[tuple[float, float]]) -> float:
    """Slope of a least-squares line, per hour; times in seconds."""
    if len(points) < 2:
        return 0.0
    times, values = zip(*points, strict=True)
    return round(statistics.linear_regression(times, values).slope * 3600, 2)


# -- load -----------------------------------------------------------------------------------


class Load:
    """Phases of overload between phases that measure the capacity.

    The capacity of a shared machine drifts within minutes, so it is measured before and after each
    phase of overload, in the same processes, with the best number of outstanding requests.
    """

    def __init__(self, wire: Runtime, factor: float, outstanding: int) -> None:
        self.wire = wire
        self.factor = factor
        self.outstanding = outstanding
        self.counts = Counts()
        self.capacities: list[float] = []
        self.offered: list[float] = []
        self.goodputs: list[float] = []

    async def measure(self) -> None:
        self.capacities.append(await closed_rate(self.wire, self.outstanding))

    async def overload(self, seconds: float) -> None:
        """Sends requests at a fixed rate, whatever became of earlier ones."""
        counts, rate = self.counts, self.capacities[-1] * self.factor
        before, first = counts.answered, counts.sent
        number = 0
        start = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        while (now := time.monotonic()) < start + seconds:
            due = int((now - start) * rate)
            while number < due:
                task = asyncio.create_task(one(self.wire, number, counts, keep_latency=True))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.sleep(0.005)
        elapsed = time.monotonic() - start
        self.goodputs.append((counts.answered - before) / elapsed)
        self.offered.append((counts.sent - first) / elapsed)
        await asyncio.gather(*tasks)

    @property
    def ratios(self) -> list[float]:
        """Goodput of each phase relative to the mean capacity before and after it."""
        around = zip(self.capacities, self.capacities[1:], strict=False)
        return [
            goodput / ((before + after) / 2)
            for goodput, (before, after) in zip(self.goodputs, around, strict=True)
        ]


async def load(args: argparse.Namespace) -> Run:
    outstanding, capacity = await best_outstanding()
    rows = max(outstanding, round(capacity * QUEUE_S))
    phases = max(1, round(args.minutes * 60 / OVERLOAD_S))
    most_memory = 0.0
    async with runtime(Admission(rows=rows)) as wire:
        run = Load(wire, args.factor, outstanding)
        await run.measure()
        for _ in range(phases):
            await run.overload(args.minutes * 60 / phases)
            most_memory = max(most_memory, psutil.Process().memory_info().rss / 2**20)
            await run.measure()
        refusal_us = await cost_of_refusing(wire, rows)
    counts = run.counts
    latencies = sorted(counts.latencies_ms) or [0.0]
    capacity, goodput = statistics.median(run.capacities), statistics.median(run.goodputs)
    figures = {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(statistics.median(run.offered), 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_of_capacity": round(goodput / capacity, 4),
        "goodput_of_capacity_worst_phase": round(min(run.ratios), 4),
        "phases": phases,
        "requests": counts.sent,
        "refused_overloaded": counts.errors[NackCode.OVERLOADED.value],
        "other_errors": sum(counts.errors.values()) - counts.errors[NackCode.OVERLOADED.value],
        "lost": counts.lost,
        "wrong": counts.wrong,
        "refusal_us": round(refusal_us, 1),
        "served_row_us": round(1e6 / capacity, 1),
        "outstanding_for_capacity": outstanding,
        "admitted_rows_at_once": rows,
        "p50_ms_of_admitted": round(latencies[len(latencies) // 2], 1),
        "p99_ms_of_admitted": round(latencies[int(len(latencies) * 0.99)], 1),
        "peak_memory_mb": round(most_memory, 1),
    }
    in_turn: dict[str, list[float]] = {
        "capacities_per_s": [round(rate) for rate in run.capacities],
        "goodputs_per_s": [round(rate) for rate in run.goodputs],
    }
    return figures, in_turn


def _before(end: float) -> bool:
    return time.monotonic() < end


async def closed_rate(wire: Runtime, outstanding: int) -> float:
    """Rows answered per second with so many outstanding."""
    counts = Counts()
    end = time.monotonic() + MEASURE_S
    await closed_loop(wire, counts, functools.partial(_before, end), outstanding)
    return counts.answered / MEASURE_S


async def best_outstanding() -> tuple[int, float]:
    """The number of outstanding requests with the highest rate, and that rate."""
    async with runtime() as wire:
        await closed_rate(wire, 32)  # warm-up
        rates = {n: await closed_rate(wire, n) for n in (32, 128, 512)}
    best = max(rates, key=lambda n: rates[n])
    return best, rates[best]


async def cost_of_refusing(wire: Runtime, rows: int) -> float:
    """Microseconds of one refusal. Nothing else runs in the event loop meanwhile."""
    filled, counts = Counts(), Counts()
    waiting = [asyncio.create_task(one(wire, number, filled)) for number in range(rows)]
    await asyncio.sleep(0)
    start = time.perf_counter()
    for number in range(REFUSALS):
        await one(wire, number, counts)
    seconds = time.perf_counter() - start
    await asyncio.gather(*waiting)
    refused = counts.errors[NackCode.OVERLOADED.value]
    if refused != REFUSALS:
        raise RuntimeError(f"{REFUSALS - refused} of {REFUSALS} were not refused")
    return seconds / REFUSALS * 1e6


RUNS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, Run]]] = {
    "soak": soak,
    "load": load,
}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--kill-every", type=float, default=20.0)
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args, about = parser.parse_args(), provenance()
    logging.getLogger("agentwire").setLevel(logging.ERROR)
    if args.minutes is None:
        args.minutes = 30.0 if args.what == "soak" else 5.0
    figures, phases = asyncio.run(RUNS[args.what](args))
    record: dict[str, Any] = {
        **about,
        "settings": {
            "models": "fake backend (deterministic, no weights)",
            "minutes": args.minutes,
            "seed": args.seed,
            "load_average": os.getloadavg()[1],
        },
        "figures": figures,
    }
    write(record | ({"phases": phases} if phases else {}), args.out)
    return 1 if figures["lost"] or figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
