"""The fault that ends everything: the runner's own process is killed.

Then its agents must leave, and its journal must name every request that it had admitted and not
ended, so that whoever comes next asks those again, by the same ids.
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

LEAVE_S = 2.0
"""Agents must be gone so long after their runner died."""
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
    """The process to be killed: sends all rows, a few at a time, and says what was answered."""
    from agentwire.runtime import Runtime
    from chaos.rig import BATCH, TIMING, wiring_of

    ids = ids_of(seed)
    async with Runtime(wiring_of(Setup()), run_folder=folder, timing=TIMING) as runtime:
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
        await asyncio.to_thread(_wait_for_the_end_of, pids, killed + 5 * LEAVE_S)
        stayed = time.monotonic() - killed
        output = (await process.stdout.read()).decode()
        said = output[: output.rfind("\n") + 1].splitlines()  # its death may cut the last line
        await process.wait()
        tally.notes["agents that outlived the runner"] += sum(_lives(pid) for pid in pids)
        tally.notes["slowest exit of an agent, ms"] = max(
            tally.notes["slowest exit of an agent, ms"], round(1000 * stayed)
        )
        if stayed > LEAVE_S:
            tally.complain(f"agents stayed for {stayed:.1f} s after their runner was killed")
            tally.wrong += 1
        await _settle(Path(folder), ids_of(seed), said, tally, expected, rng)


async def _settle(
    folder: Path,
    ids: list[str],
    said: list[str],
    tally: Tally,
    expected: Answers,
    rng: random.Random,
) -> None:
    """Asks again what the journal names, and what had never been admitted."""
    lines = list(read_lines(folder / "journal.jsonl"))
    ended = {i for line in lines if line["event"] == "finished" for i in line["request_ids"]}
    left = unfinished(lines)
    answered = {words[1]: words[3] for words in map(str.split, said) if words[0] == "answered"}
    # Whatever a caller was told has ended is in the journal as ended.
    tally.lost += len(answered.keys() - ended)
    tally.duplicated += len(ended & set(left))
    tally.wrong += sum(expected[TEXTS[ids.index(i)]][0] != label for i, label in answered.items())
    again = [i for i in ids if i not in ended]
    tally.lost += len(set(left) - set(again))
    tally.notes["requests named unfinished"] += len(left)
    texts = [TEXTS[ids.index(i)] for i in again]
    async with rig(Setup(), rng) as second:
        outcomes = await second.send(texts, ids=again)
        tally.count(second.books, texts, outcomes, expected)
    tally.requests += len(ids) - len(again)


def _wait_for_the_end_of(pids: list[int], until: float) -> None:
    while any(map(_lives, pids)) and time.monotonic() < until:
        time.sleep(0.005)


def _lives(pid: int) -> bool:
    """Whether it runs: a zombie does not, which its new parent reaps at leisure."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
