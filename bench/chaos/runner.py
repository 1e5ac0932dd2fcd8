"""The fault that kills the runner's own process.

Its agents must then exit, and its journal must name every admitted request that has not ended, so
that the next run can resend them with the same ids.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil

from agentwire.telemetry.journal import read_lines, unfinished
from chaos.rig import TEXTS, Answers, Setup, Tally, rig

EXIT_S = 2.0
"""Agents must exit within this time after their runner died."""
BENCH = Path(__file__).resolve().parents[1]
PROGRAM = """
import asyncio, random, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from chaos.runner import child
asyncio.run(child(Path(sys.argv[2]), int(sys.argv[3])))
"""


def ids_of(seed: int) -> list[str]:
    return [random.Random(f"{seed} {n}").randbytes(16).hex() for n in range(len(TEXTS))]


async def child(folder: Path, seed: int) -> None:
    """The process to be killed: sends all rows, a few at a time, and prints the answers."""
    from agentwire.runtime import Runtime
    from chaos.rig import BATCH, TIMING, deployment_of

    ids = ids_of(seed)
    async with Runtime(deployment_of(Setup()), run_folder=folder, timing=TIMING) as runtime:
        print("pids", *(info.pid for info in runtime.agents.values()), flush=True)
        for start in range(0, len(TEXTS), BATCH):
            part = slice(start, start + BATCH)
            replies = await runtime.send_batch(
                "sender", "receiver", TEXTS[part], request_ids=ids[part]
            )
            for text, reply in zip(TEXTS[part], replies, strict=True):
                if isinstance(reply, Exception):
                    raise reply
                print("answered", reply.request_id, TEXTS.index(text), reply.label, flush=True)
        print("done", flush=True)
        await asyncio.sleep(60)


async def runner_killed(rng: random.Random, tally: Tally, expected: Answers) -> None:
    """One round."""
    seed = rng.randrange(2**31)
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            str(BENCH),
            folder,
            str(seed),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        pids = [int(word) for word in (await process.stdout.readline()).split()[1:]]
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        killed = time.monotonic()
        await asyncio.to_thread(_wait_for_exit, pids, killed + 5 * EXIT_S)
        exit_s = time.monotonic() - killed
        output = (await process.stdout.read()).decode()
        printed = output[: output.rfind("\n") + 1].splitlines()  # the last line may be incomplete
        await process.wait()
        tally.notes["agents that outlived the runner"] += sum(_is_running(pid) for pid in pids)
        tally.notes["slowest exit of an agent, ms"] = max(
            tally.notes["slowest exit of an agent, ms"], round(1000 * exit_s)
        )
        if exit_s > EXIT_S:
            tally.add_problem(f"agents ran for {exit_s:.1f} s after their runner was killed")
            tally.wrong += 1
        await _resend(Path(folder), ids_of(seed), printed, tally, expected, rng)


async def _resend(
    folder: Path,
    ids: list[str],
    printed: list[str],
    tally: Tally,
    expected: Answers,
    rng: random.Random,
) -> None:
    """Resends the requests that the journal names, and those never admitted."""
    lines = list(read_lines(folder / "journal.jsonl"))
    ended = {i for line in lines if line["event"] == "finished" for i in line["request_ids"]}
    left = unfinished(lines)
    answered = {words[1]: words[3] for words in map(str.split, printed) if words[0] == "answered"}
    # A request that was answered is in the journal as ended.
    tally.lost += len(answered.keys() - ended)
    tally.duplicated += len(ended & set(left))
    tally.wrong += sum(expected[TEXTS[ids.index(i)]][0] != label for i, label in answered.items())
    again = [i for i in ids if i not in ended]
    tally.lost += len(set(left) - set(again))
    tally.notes["requests named unfinished"] += len(left)
    texts = [TEXTS[ids.index(i)] for i in again]
    async with rig(Setup(), rng) as second:
        outcomes = await second.send(texts, ids=again)
        tally.count(second.journal, texts, outcomes, expected)
    tally.requests += len(ids) - len(again)


def _wait_for_exit(pids: list[int], until: float) -> None:
    while any(map(_is_running, pids)) and time.monotonic() < until:
        time.sleep(0.005)


def _is_running(pid: int) -> bool:
    """Whether the process runs; a zombie that its new parent has not reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
