"""What one message costs beside the devices: every hop between threads and processes, by stage.

Two fake agents with devices that take a fixed time and cost no processor (``FakeModel.pipelined``),
real processes and the real bus, payloads of the 7B shape (8 x 4096 float16). What is left of a
message's latency when the devices' time is taken off is the cost of agents, broker and client. With
``--compare`` runs of several settings take turns in one call.

    python bench/hops.py [--messages 200] [--encode-ms 3.4] [--decode-ms 6] [--out ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chaos.rig import TASK, WIRE

from agentwire import host
from agentwire.agent.spec import AgentSpec, FakeModel, OutgoingBridge
from agentwire.runtime import Runtime
from agentwire.scenario.schema import WireSpec
from agentwire.task.metrics import percentile
from agentwire.wiring import Wiring

WARM_UP = 20
TEXT = "a text of a few words, as they are sent one after another, number {}"


def wiring_of(args: argparse.Namespace, changes: dict[str, Any]) -> Wiring:
    wire = WireSpec.model_validate({"from": "sender", "to": "receiver", "fallback": "error"})
    fake = FakeModel(width=4096, encode_ms=args.encode_ms, decode_ms=args.decode_ms, pipelined=True)
    bridges = (OutgoingBridge(wire=WIRE, receiver="receiver", folder="fake:receiver-model"),)
    agents = {
        name: AgentSpec(
            name=name,
            backend="fake",
            model=f"{name}-model",
            threads=1,
            max_batch=16,
            max_wait_ms=0.0,
            bridges=bridges if name == "sender" else (),
            fake=fake,
            **changes,
        )
        for name in ("sender", "receiver")
    }
    return Wiring.of_specs(agents, [wire], task=TASK)


class _NoJournal:
    def write(self, event: str, **fields: Any) -> None:
        pass


async def measure(args: argparse.Namespace, changes: dict[str, Any]) -> dict[str, float]:
    """One setting: latency beside the devices in milliseconds, and the medians of the stages."""
    devices = args.encode_ms + args.decode_ms
    over: list[float] = []
    stages: dict[str, list[float]] = {}
    changes = dict(changes)
    broker_ms = changes.pop("broker_awake_ms", changes.get("awake_ms", 0.0))
    plain = vars(host)["Broker"]
    vars(host)["Broker"] = lambda **kw: plain(**{**kw, "awake_s": broker_ms / 1000})
    async with Runtime(wiring_of(args, changes), journal=_NoJournal()) as runtime:
        vars(host)["Broker"] = plain
        for number in range(WARM_UP + args.messages):
            text = TEXT.format(number)
            start = time.perf_counter()
            (reply,) = await runtime.send_batch("sender", "receiver", [text])
            took = (time.perf_counter() - start) * 1000
            if isinstance(reply, Exception):
                raise reply
            if number >= WARM_UP:
                over.append(took - devices)
                for stage, ms in {**reply.stages, "client": took - reply.latency_ms}.items():
                    stages.setdefault(stage, []).append(ms)
            await asyncio.sleep(args.pause_ms / 1000)
        rate = await flood(runtime, args.seconds)
    return {
        "p50_ms": percentile(over, 50),
        "p95_ms": percentile(over, 95),
        "p99_ms": percentile(over, 99),
        **{f"{stage}_ms": statistics.median(ms) for stage, ms in stages.items()},
        "messages_per_s": rate,
    }


async def flood(runtime: Runtime, seconds: float) -> float:
    """Messages a second with four in flight."""
    count, start = 0, time.perf_counter()

    async def lane() -> None:
        nonlocal count
        while time.perf_counter() - start < seconds:
            await runtime.send_batch("sender", "receiver", [TEXT.format(count)])
            count += 1

    await asyncio.gather(*(lane() for _ in range(4)))
    return count / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--encode-ms", type=float, default=3.4)
    parser.add_argument("--decode-ms", type=float, default=6.0)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the flood")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--compare", nargs="+", default=["{}"], help="changes of the agents, JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in args.compare}
    for _ in range(args.rounds):
        for name in args.compare:
            figures = asyncio.run(measure(args, json.loads(name)))
            seen[name].append(figures)
            shown = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
            print(f"{name}: {shown}", flush=True)
            if args.out:
                args.out.write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
