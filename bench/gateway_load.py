"""The gateway under load: many clients, every answer compared with ``agentwire run``.

First ``agentwire run`` scores rows with the bridge. Then ``agentwire serve`` answers the same texts
for ``--clients`` clients, each with one request outstanding, for ``--seconds``. Some requests have
forged handles and must get 404. Counted: answers by status, answers that differ from the run's
prediction, rows a second, latency.

    python bench/gateway_load.py [--seconds 120] [--out bench/results/gateway-load.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
from records import SCENARIO, parser_of, provenance, write

from agentwire.config import Config
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.task.datasets import load_rows

FORGED_EVERY = 50
CLI = [sys.executable, "-m", "agentwire"]


@dataclass
class Tally:
    statuses: Counter[str] = field(default_factory=Counter)
    channels: Counter[str] = field(default_factory=Counter)
    different: int = 0
    milliseconds: list[float] = field(default_factory=list)


def predicted(scenario: Path, rows: int, folder: Path) -> tuple[dict[int, str], dict[str, Any]]:
    """Predicted label of each row, and result.json."""
    command = [*CLI, "run", str(scenario), "--methods", "bridge", "--limit", str(rows)]
    done = subprocess.run(
        [*command, "--out", str(folder), "--json"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    lines = (folder / result["run_id"] / "predictions.jsonl").read_text().splitlines()
    return {r["row"]: r["predicted"] for r in map(json.loads, lines)}, result


async def client(
    http: httpx2.AsyncClient, model: str, texts: dict[int, str], expected: dict[int, str],
    until: float, tally: Tally, draw: random.Random,
) -> None:  # fmt: skip
    while time.monotonic() < until:
        row = draw.choice(list(expected))
        forged = draw.randrange(FORGED_EVERY) == 0
        text = f"<|agentwire:{draw.randbytes(24).hex()[:32]}|>" if forged else texts[row]
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        began = time.perf_counter()
        try:
            response = await http.post("/chat/completions", json=body)
        except httpx2.HTTPError as error:
            tally.statuses[type(error).__name__] += 1
            continue
        tally.statuses[f"{response.status_code}{' (forged)' if forged else ''}"] += 1
        if response.status_code == 429:
            await asyncio.sleep(float(response.headers["retry-after"]))
        if response.status_code != 200:
            continue
        tally.milliseconds.append((time.perf_counter() - began) * 1000)
        answer = response.json()
        tally.channels[answer["agentwire"]["channel"]] += 1
        tally.different += answer["choices"][0]["message"]["content"] != expected[row]


async def load(
    scenario: Path, model: str, texts: dict[int, str], expected: dict[int, str],
    options: argparse.Namespace,
) -> tuple[Tally, str]:  # fmt: skip
    tally = Tally()
    async with AsyncExitStack() as stack:
        server = await asyncio.create_subprocess_exec(
            *CLI,
            *("serve", str(scenario), "--port", "0", "--json"),
            *("--requests", str(options.requests)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        stack.push_async_callback(server.wait)
        stack.callback(server.terminate)
        assert server.stdout is not None
        url = json.loads(await server.stdout.readline())["url"]
        limits = httpx2.Limits(max_connections=options.clients)
        http = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, limits=limits, timeout=300)
        )
        until = time.monotonic() + options.seconds
        draws = [random.Random(seed) for seed in range(options.clients)]
        await asyncio.gather(
            *(client(http, model, texts, expected, until, tally, draw) for draw in draws)
        )
        metrics = (await http.get("/../metrics")).text
    return tally, metrics


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--requests", type=int, default=48, help="answered at once; more get 429")
    parser.add_argument("--rows", type=int, default=200)
    options, about = parser.parse_args(), provenance()
    resolved = resolve(load_scenario(options.scenario), source=options.scenario)
    assert resolved.data is not None
    data = load_rows(resolved.data.dataset, resolved.data.split, config=Config.from_env())
    with tempfile.TemporaryDirectory() as folder:
        expected, run = predicted(options.scenario, options.rows, Path(folder))
    texts = {row: data.rows[row].text for row in expected}
    wire = next(iter(resolved.wires))
    tally, metrics = asyncio.run(load(options.scenario, wire, texts, expected, options))
    times = statistics.quantiles(tally.milliseconds, n=100)
    models = ", ".join(agent["model"] for agent in run["agents"].values())
    result = {
        "benchmark": "gateway_load",
        "labels": [
            f"{'STAND-IN ' if run['substitutions'] else ''}models: {models}; "
            f"data: {resolved.data.dataset} {resolved.data.split}"
        ],
        **about,
        "versions": {name: metadata.version(name) for name in ("starlette", "uvicorn", "torch")},
        "clients": options.clients,
        "answered at once": options.requests,
        "seconds": options.seconds,
        "statuses": dict(sorted(tally.statuses.items())),
        "channels": dict(tally.channels),
        "answers that differ from `agentwire run`": tally.different,
        "rows per second": round(len(tally.milliseconds) / options.seconds, 2),
        "p50_ms": round(times[49], 1),
        "p99_ms": round(times[98], 1),
        "in flight at the end": "agentwire_gateway_in_flight 0.0" in metrics and 0,
    }
    write(result, options.out)


if __name__ == "__main__":
    main()
