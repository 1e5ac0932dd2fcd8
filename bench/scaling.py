"""How much one runner carries, with agents that wait as a GPU would compute.

Fake agents run in real processes on the real bus. Each batch "computes" for ``--compute-ms``
without using a core and carries payloads of the 7B shape (8 x 4096 fp16, 64 KiB a row), so the
limits are the runner (client, broker) and the agents' own work around the model. Connections:

* ``ipc``: sender-receiver pairs as processes of this machine.
* ``tcp``: the same pairs, each agent joined over tcp with CURVE keys, as from its own machine.
* ``idle``: one busy pair beside idle ones: the cost of more wires and agents.
* ``gateway``: pairs behind one ``serve``; many HTTP clients send one text at a time.
* ``ray``: the pairs as Ray actors of one local cluster (if Ray is installed).

    python bench/scaling.py [--ways ipc tcp idle gateway] [--pairs 1 2 4 8] [--seconds 3]

Figures: messages and rows a second, CPU milliseconds a message of the runner and of all agents
(callers are part of the runner, but not of a gateway), and the median latency. CPU time hardly
depends on other load of the machine; rates do. A call replaces the ways that it measures in the
record and keeps the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from records import parser_of, provenance, write
from scale.load import IN_FLIGHT, Load, ask_gateway, ask_runtime
from scale.pairs import PAYLOAD_BYTES, OverTcp, deployment

from agentwire.agent.launching.placement import Remote
from agentwire.benchmark.machine import conditions, load_average
from agentwire.runtime import Runtime
from agentwire.runtime.deployment import Deployment

HERE = Path(__file__).resolve().parent
WAYS = ("ipc", "tcp", "idle", "gateway", "ray")
CLIENTS = 32  # HTTP clients of each pair: two batches


def remote_of(way: str, what: Deployment, stack: AsyncExitStack, address: str) -> Remote | None:
    """How agents join that are not child processes of the runner, if they are not."""
    if way == "tcp":
        return OverTcp().remote(frozenset(what.agents))
    if way == "ray":
        from agentwire.agent.launching.ray import RayLauncher

        launcher = RayLauncher(address)
        stack.callback(launcher.close)
        return launcher.place(what.agents)
    return None


async def by_runtime(way: str, pairs: int, idle: int, options: argparse.Namespace) -> Load:
    """Load on ``pairs`` pairs beside ``idle`` others."""
    what = deployment(pairs + idle, options.batch, options.compute_ms)
    async with AsyncExitStack() as stack:
        remote = remote_of(way, what, stack, options.address)
        wire = await stack.enter_async_context(Runtime(what, remote=remote))
        return await ask_runtime(wire, pairs, options.batch, options.seconds)


async def by_gateway(pairs: int, options: argparse.Namespace) -> Load:
    """Load on ``pairs`` pairs behind one gateway."""
    command = [str(HERE / "scale" / "gateway.py"), str(pairs), str(options.batch)]
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, str(options.compute_ms), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        url = (await server.stdout.readline()).decode().strip()
        return await ask_gateway(url, server.pid, pairs, CLIENTS, options.seconds)
    finally:
        server.terminate()
        await server.wait()


def figures(load: Load, pairs: int, idle: int) -> dict[str, Any]:
    messages = len(load.milliseconds)

    def each(seconds: float | None) -> float | None:
        return None if seconds is None else round(1000 * seconds / messages, 3)

    return {
        "pairs": pairs,
        "idle_pairs": idle,
        "messages_per_s": round(messages / load.seconds, 2),
        "rows_per_s": round(messages * load.rows / load.seconds, 1),
        "p50_ms": round(statistics.median(load.milliseconds), 2),
        "runner_cpu_ms": each(load.runner_s),
        "agents_cpu_ms": each(load.agents_s),
    }


def measure(way: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of one way for each number of pairs (``idle``: of other pairs)."""
    found = []
    for count in options.pairs:
        pairs, idle = (1, count - 1) if way == "idle" else (count, 0)
        if way == "gateway":
            load = asyncio.run(by_gateway(pairs, options))
        else:
            load = asyncio.run(by_runtime(way, pairs, idle, options))
        found.append(figures(load, pairs, idle))
        print(way, found[-1], flush=True)
    return found


def main() -> int:
    parser = parser_of(__doc__)
    parser.set_defaults(out=Path("bench/results/scaling-cpu.json"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:-1]))
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--address", default="local", help="of the Ray cluster")
    options = parser.parse_args()
    record: dict[str, Any] = {"benchmark": "scaling", "ways": {}}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    for way in options.ways:
        about, load, began = provenance(), load_average(), time.perf_counter()
        found = measure(way, options)
        record["ways"][way] = {
            **about,
            "seconds": round(time.perf_counter() - began, 1),
            "labels": [
                "FAKE MODELS that wait: payloads of the 7B shape, not its accuracy or speed",
                *conditions(load),
            ],
            "settings": {
                "rows_of_a_message": 1 if way == "gateway" else options.batch,
                "compute_ms": options.compute_ms,
                "seconds": options.seconds,
                "payload_bytes_of_a_row": PAYLOAD_BYTES,
                "in_flight_of_a_pair": CLIENTS if way == "gateway" else IN_FLIGHT,
            },
            "figures": found,
        }
        write(record, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
