"""Runs the faults, round by round, and counts the outcomes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from chaos.faults import FAULTS, Fault
from chaos.rig import Answers, Tally, answers_without_faults, rig
from chaos.runner import runner_killed

RUNNER = "runner_killed"


def names() -> list[str]:
    """The faults that occur inside a runtime."""
    return [fault.name for fault in FAULTS]


async def run_fault(fault: Fault, rounds: int, seed: int, expected: Answers) -> Tally:
    """All rounds of one fault."""
    rng = random.Random(f"{seed} {fault.name}")
    tally = Tally()
    if fault.fresh:
        for _ in range(rounds):
            async with rig(fault.setup, rng) as made:
                await fault.round(made, tally, expected)
            tally.rounds += 1
        return tally
    async with rig(fault.setup, rng) as made:
        for _ in range(rounds):
            await fault.round(made, tally, expected)
            tally.rounds += 1
    return tally


async def run_together(
    rounds: int, seed: int, expected: Answers, at_once: int
) -> dict[str, Tally | BaseException]:
    """Runs the faults inside a runtime, several at once, since they wait most of the time.

    Returns:
        The tally of each fault, or the exception that ended it.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(fault: Fault) -> Tally:
        async with slots:
            return await run_fault(fault, rounds, seed, expected)

    results = await asyncio.gather(*map(one, FAULTS), return_exceptions=True)
    return dict(zip(names(), results, strict=True))


async def run_runner(rounds: int, seed: int, expected: Answers) -> Tally:
    """All rounds of the fault that kills the runner."""
    rng = random.Random(f"{seed} {RUNNER}")
    tally = Tally()
    for _ in range(rounds):
        await runner_killed(rng, tally, expected)
        tally.rounds += 1
    return tally


async def run_matrix(
    rounds: int,
    seed: int,
    only: Sequence[str] = (),
    report: Callable[[str, Tally], None] = lambda name, tally: None,
) -> dict[str, Tally]:
    """Runs every fault (or those named), in order."""
    expected = await answers_without_faults()
    tallies: dict[str, Tally] = {}
    for fault in FAULTS:
        if not only or fault.name in only:
            tallies[fault.name] = await run_fault(fault, rounds, seed, expected)
            report(fault.name, tallies[fault.name])
    if not only or RUNNER in only:
        tallies[RUNNER] = await run_runner(rounds, seed, expected)
        report(RUNNER, tallies[RUNNER])
    return tallies
