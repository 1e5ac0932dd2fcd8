"""The overhead of one message: its latency minus the time of the devices, by stage.

Two fake agents whose devices take a fixed time without using the processor
(``FakeModel.pipelined``), real processes and the real bus, payloads of the 7B shape (8 x 4096
float16). The remaining latency is the cost of agents, broker and client. A figure is the median
over rounds; each round starts new agents.

    python bench/hops.py [--messages 200] [--rounds 3] [--out bench/results/hops-cpu.json]
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bare_hops import bare_round
from fakes import two_agents
from overhead import recorded
from rich.console import Console

from agentwire.benchmark.machine import conditions, load_average
from agentwire.evaluation.summary import hardware, versions
from agentwire.runtime import Runtime
from agentwire.runtime.deployment import Deployment
from agentwire.spec.agent import FakeModel
from agentwire.task.metrics import percentile
from agentwire.telemetry.journal import NoJournal

WARM_UP = 20
PAYLOAD_BYTES = 8 * 4096 * 2
TEXT = "a text of a few words, as they are sent one after another, number {}"


def deployment_of(args: argparse.Namespace, *, rehearse: bool) -> Deployment:
    fake = FakeModel(width=4096, encode_ms=args.encode_ms, decode_ms=args.decode_ms, pipelined=True)
    return two_agents(fake, fake, wire={"fallback": "error"}, max_wait_ms=0.0, rehearse=rehearse)


async def one_way(args: argparse.Namespace, *, rehearse: bool) -> dict[str, float]:
    """Milliseconds without the devices, and the medians of the other stages.

    Raises:
        RequestError: a message failed.
    """
    over: list[float] = []
    stages: dict[str, list[float]] = {"queue": [], "wire": [], "client": []}
    async with Runtime(deployment_of(args, rehearse=rehearse), journal=NoJournal()) as runtime:
        for number in range(WARM_UP + args.messages):
            start = time.perf_counter()
            (reply,) = await runtime.send_batch("sender", "receiver", [TEXT.format(number)])
            took = (time.perf_counter() - start) * 1000
            if isinstance(reply, Exception):
                raise reply
            if number < WARM_UP:
                continue
            over.append(took - args.encode_ms - args.decode_ms)
            seen = {**reply.stages, "client": took - reply.latency_ms}
            for stage, spent in stages.items():
                spent.append(seen[stage])
    return {
        "beside_devices_p50_ms": percentile(over, 50),
        "beside_devices_p99_ms": percentile(over, 99),
        **{f"{stage}_ms": statistics.median(spent) for stage, spent in stages.items()},
    }


async def one_round(args: argparse.Namespace) -> dict[str, float]:
    """Measures agents, agents with warm-up (as on a GPU), and bare sockets, in turn.

    Raises:
        RequestError: a message failed.
    """
    plain = await one_way(args, rehearse=False)
    warm = await one_way(args, rehearse=True)
    pauses = (args.encode_ms, args.decode_ms)
    bare = await asyncio.to_thread(bare_round, args.messages, WARM_UP, pauses, PAYLOAD_BYTES)
    return {
        **plain,
        **{f"rehearsed_{name}": value for name, value in warm.items()},
        "bare_beside_devices_p50_ms": percentile(bare, 50),
        "bare_beside_devices_p99_ms": percentile(bare, 99),
    }


async def measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    load, rounds = load_average(), []
    for number in range(args.rounds):
        rounds.append(await one_round(args))
        shown = ", ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items())
        console.print(f"round {number + 1} of {args.rounds}: {shown}")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/hops.py", *sys.argv[1:]]),
        "hardware": hardware().model_dump(),
        "versions": versions(),
        "settings": {
            "devices": f"fake, {args.encode_ms} and {args.decode_ms} ms",
            "payload_bytes": PAYLOAD_BYTES,
            "messages": args.messages,
            "rounds": args.rounds,
            "load": "; ".join(conditions(load)) or "idle machine",
        },
        "figures": {
            name: round(statistics.median(found[name] for found in rounds), 3) for name in rounds[0]
        },
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encode-ms", type=float, default=3.4)
    parser.add_argument("--decode-ms", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    return recorded(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
