"""Cost of one message without the devices: every hop between threads and processes, by stage.

Two fake agents have devices that take a fixed time and no processor (``FakeModel.pipelined``).
Processes and bus are real, and payloads have the 7B shape (8 x 4096 float16). A message's latency
minus the devices' time is the cost of agents, broker and client. A figure is the median over
rounds, each with agents of its own.

    python bench/hops.py [--messages 200] [--rounds 3] [--out bench/results/hops-cpu.json]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

from bare_hops import bare_round
from fakes import two_agents
from records import parser_of, provenance, write

from agentwire.benchmark.machine import conditions, load_average
from agentwire.runtime import Runtime
from agentwire.spec.agent import FakeModel
from agentwire.task.metrics import percentile
from agentwire.telemetry.journal import NoJournal

WARM_UP = 20
PAYLOAD_BYTES = 8 * 4096 * 2
TEXT = "a text of a few words, as they are sent one after another, number {}"


async def agents_round(args: argparse.Namespace, *, rehearse: bool) -> dict[str, float]:
    """Milliseconds without the devices, and medians of the other stages.

    Raises:
        RequestError: a message was not answered.
    """
    fake = FakeModel(width=4096, encode_ms=args.encode_ms, decode_ms=args.decode_ms, pipelined=True)
    deployment = two_agents(
        fake, fake, wire={"fallback": "error"}, max_wait_ms=0.0, rehearse=rehearse
    )
    rest: list[float] = []
    stages: dict[str, list[float]] = {"queue": [], "wire": [], "client": []}
    async with Runtime(deployment, journal=NoJournal()) as runtime:
        for number in range(WARM_UP + args.messages):
            start = time.perf_counter()
            (reply,) = await runtime.send_batch("sender", "receiver", [TEXT.format(number)])
            took = (time.perf_counter() - start) * 1000
            if isinstance(reply, Exception):
                raise reply
            if number < WARM_UP:
                continue
            rest.append(took - args.encode_ms - args.decode_ms)
            reported = {**reply.stages, "client": took - reply.latency_ms}
            for stage, times in stages.items():
                times.append(reported[stage])
    return {
        "beside_devices_p50_ms": percentile(rest, 50),
        "beside_devices_p99_ms": percentile(rest, 99),
        **{f"{stage}_ms": statistics.median(times) for stage, times in stages.items()},
    }


def one_round(args: argparse.Namespace) -> dict[str, float]:
    """Agents, agents that warm up between messages as on a GPU, and bare sockets.

    Raises:
        RequestError: a message was not answered.
    """
    plain = asyncio.run(agents_round(args, rehearse=False))
    warm = asyncio.run(agents_round(args, rehearse=True))
    bare = bare_round(args.messages, WARM_UP, (args.encode_ms, args.decode_ms), PAYLOAD_BYTES)
    return {
        **plain,
        **{f"rehearsed_{name}": value for name, value in warm.items()},
        "bare_beside_devices_p50_ms": percentile(bare, 50),
        "bare_beside_devices_p99_ms": percentile(bare, 99),
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encode-ms", type=float, default=3.4)
    parser.add_argument("--decode-ms", type=float, default=6.0)
    args = parser.parse_args()
    load, about, rounds = load_average(), provenance(), []
    for number in range(args.rounds):
        rounds.append(one_round(args))
        shown = ", ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items())
        print(f"round {number + 1} of {args.rounds}: {shown}", file=sys.stderr)
    record = {
        **about,
        "settings": {
            "devices": f"fake, {args.encode_ms} and {args.decode_ms} ms",
            "payload_bytes": PAYLOAD_BYTES,
            "messages": args.messages,
            "rounds": args.rounds,
            "load": "; ".join(conditions(load)) or "idle",
        },
        "figures": {
            name: round(statistics.median(found[name] for found in rounds), 3) for name in rounds[0]
        },
        "rounds": rounds,
    }
    write(record, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
