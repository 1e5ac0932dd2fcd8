"""How many sender-receiver pairs one runner carries, by agents that wait as a GPU would compute.

Fake agents in real processes on the real bus; each batch "computes" for ``--compute-ms`` without
using a core, and carries payloads of the 7B shape (8 x 4096 fp16, 64 KiB a row). So what ends the
growth is runner and bus (client, broker) and the agents' own work around the model. With ``--ray``
the same agents are Ray actors of one local cluster, on tcp with CURVE keys.

    python bench/scaling.py [--pairs 1 2 4 8] [--seconds 5] [--ray] [--out FILE]

Figures: messages and rows a second of all pairs together, as a share of what the pairs would do if
nothing but the compute took time, and the median latency of a message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from agentwire.agent.spec import AgentSpec, FakeModel, OutgoingBridge, Placement
from agentwire.outcomes import answered
from agentwire.runtime import Runtime
from agentwire.scenario.schema import WireSpec
from agentwire.scenario.summary import hardware, versions
from agentwire.wire.messages import TaskSpec
from agentwire.wiring import Wiring

WIDTH = 4096
TASK = TaskSpec("scaling", "Answer:", "{text}\nAnswer:", ("good", "bad"))


def wiring(pairs: int, batch: int, compute_ms: float) -> Wiring:
    """``pairs`` senders, each with a receiver of its own."""
    fake = FakeModel(width=WIDTH, encode_ms=compute_ms, decode_ms=compute_ms)
    agents: dict[str, AgentSpec] = {}
    wires = []
    for i in range(pairs):
        sender, receiver = f"sender-{i}", f"receiver-{i}"
        wire = WireSpec.model_validate({"from": sender, "to": receiver, "fallback": "error"})
        wires.append(wire)
        bridge = OutgoingBridge(wire=wire.name, receiver=receiver, folder="fake:receiver")
        for name, model, bridges in ((sender, "sender", (bridge,)), (receiver, "receiver", ())):
            agents[name] = AgentSpec(
                name=name,
                backend="fake",
                model=model,
                threads=1,
                max_batch=batch,
                batch_by="message",
                bridges=bridges,
                fake=fake,
                place=Placement(cpus=0),  # they only wait: more of them than cores
            )
    return Wiring.of_specs(agents, wires, task=TASK)


async def load(wire: Runtime, pair: int, batch: int, until: float) -> list[float]:
    """Asks one pair, two messages in flight, until the time is over: latencies in ms."""
    taken: list[float] = []

    async def caller(which: int) -> None:
        count = 0
        while time.perf_counter() < until:
            texts = [f"{pair} {which} {count} {row}" for row in range(batch)]
            start = time.perf_counter()
            answered(await wire.send_batch(f"sender-{pair}", f"receiver-{pair}", texts))
            taken.append((time.perf_counter() - start) * 1000)
            count += 1

    await asyncio.gather(*(caller(which) for which in range(2)))
    return taken


async def measure(pairs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of so many pairs."""
    batch, compute = arguments.batch, arguments.compute_ms
    what = wiring(pairs, batch, compute)
    launcher = None
    if arguments.ray:
        from agentwire.launch.ray import RayLauncher

        launcher = RayLauncher(arguments.address)
    remote = launcher.remote(what.agents) if launcher is not None else None
    async with Runtime(what, remote=remote) as wire:
        warm = time.perf_counter() + 0.5
        await asyncio.gather(*(load(wire, i, batch, warm) for i in range(pairs)))
        runner = psutil.Process()
        before, start = runner.cpu_times(), time.perf_counter()
        end = start + arguments.seconds
        taken = await asyncio.gather(*(load(wire, i, batch, end) for i in range(pairs)))
        elapsed, after = time.perf_counter() - start, runner.cpu_times()
    latencies = [ms for each in taken for ms in each]
    rows_per_s = len(latencies) * batch / elapsed
    cpu = (after.user + after.system - before.user - before.system) / len(latencies)
    return {
        "pairs": pairs,
        "launcher": "ray" if arguments.ray else "local",
        "messages_per_s": round(len(latencies) / elapsed, 2),
        "rows_per_s": round(rows_per_s, 1),
        "share_of_ideal": round(rows_per_s / (pairs * batch * 1000 / compute), 4),
        "p50_ms": round(statistics.median(latencies), 2),
        "runner_cpu_ms_per_message": round(cpu * 1000, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--address", default="local", help="of the Ray cluster")
    parser.add_argument("--out", type=Path, default=Path("bench/results/scaling-cpu.json"))
    arguments = parser.parse_args()
    figures = []
    started = datetime.now(UTC).isoformat(timespec="seconds")
    for pairs in arguments.pairs:
        figures.append(asyncio.run(measure(pairs, arguments)))
        print(figures[-1], flush=True)
    # Both launchers share a record; each run replaces its own half.
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    record["ray" if arguments.ray else "local"] = {
        "started": started,
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware().model_dump(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": versions(),
        "labels": ["fake models that wait", "payloads of the 7B shape, not its accuracy or speed"],
        "settings": {
            "batch": arguments.batch,
            "compute_ms": arguments.compute_ms,
            "seconds": arguments.seconds,
            "payload_bytes": 8 * WIDTH * 2,
            "messages_in_flight_per_pair": 2,
        },
        "figures": figures,
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
