"""What processes and bus cost: a scenario's bridge against the same two models called in turn.

Both sides score the same rows in the same batches with the same bridge: ``in process`` calls the
sender's ``encode`` and the receiver's ``score_soft`` one after the other in this process, first
with all CPU threads, then with as many as the agents have; ``bus`` sends the rows through broker
and agent processes with one or more batches in flight. Rounds of all of them alternate in one run,
so that the ratios stand on any machine; a figure is the median over rounds of the ratio to ``all
threads`` of the same round. Filling and draining the pipeline is part of the time.

    python bench/overhead.py [--rows 480] [--rounds 5] [--out bench/results/overhead-cpu.json]

Predictions of both sides are compared row by row, and so are those of batches of one.
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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from agentwire.config import Config
from agentwire.errors import AgentwireError, InputError
from agentwire.evaluation.predictions import choose_rows
from agentwire.evaluation.summary import hardware, versions
from agentwire.model.transformers import TransformersBackend
from agentwire.runtime import Runtime
from agentwire.scenario.fetch import fetch
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.task.datasets import load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.rows import rows_sha256
from agentwire.wire.messages import TaskSpec

SCENARIO = Path(__file__).resolve().parent.parent / "scenarios" / "llama_to_mistral_sst2.yaml"
ALL, DIVIDED = "in process, all threads", "in process, agents' threads"
Scores = npt.NDArray[np.float32]  # [rows, labels]
Way = Callable[[Sequence[str], int], Awaitable[Scores]]


class InProcess:
    """Both models in this process."""

    def __init__(self, resolved: Resolved, task: TaskSpec) -> None:
        wire = resolved.wire
        if wire.folder is None:
            raise InputError("The wire has no bridge.", hint="`agentwire train` makes one.")
        specs = [resolved.agents[name] for name in (wire.spec.sender, wire.spec.receiver)]
        self._threads = [spec.threads or torch.get_num_threads() for spec in specs]
        self._all = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self._sender, self._receiver = (
            TransformersBackend.load(
                spec.model_copy(update={"threads": None}), lambda *_: None
            ).for_inference()
            for spec in specs
        )
        self._bridge = self._sender.add_bridge(wire.folder).fingerprint
        self._task = task

    def way(self, *, divided: bool) -> Way:
        for_sender, for_receiver = self._threads if divided else (self._all, self._all)

        async def run(texts: Sequence[str], batch_size: int) -> Scores:
            scores = []
            for start in range(0, len(texts), batch_size):
                torch.set_num_threads(for_sender)
                encoded = self._sender.encode(texts[start : start + batch_size], self._bridge)
                torch.set_num_threads(for_receiver)
                scores.append(self._receiver.score_soft(encoded.payload, self._task).scores)
            return np.concatenate(scores)

        return run


def over_bus(runtime: Runtime, resolved: Resolved, task: TaskSpec, in_flight: int) -> Way:
    """The same rows through agents and bus; an error where the bridge does not answer."""
    ends = resolved.wire.spec

    async def run(texts: Sequence[str], batch_size: int) -> Scores:
        batches = runtime.send_many(
            ends.sender,
            ends.receiver,
            texts,
            batch_size=batch_size,
            in_flight=in_flight,
            fallback="error",
        )
        replies = [reply async for batch in batches for reply in batch]
        rows = [[reply.scores[label] for label in task.labels] for reply in replies]
        return np.array(rows, dtype=np.float32)

    return run


async def compare(
    ways: dict[str, Way], texts: Sequence[str], batch_size: int, rounds: int, console: Console
) -> tuple[dict[str, list[float]], dict[str, Scores]]:
    """Rows per second of each way in each round, and each way's scores."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Scores] = {}
    for way in ways.values():
        await way(texts[: 2 * batch_size], batch_size)
    names = list(ways)
    for round_ in range(rounds):
        first = round_ % len(names)  # nobody always runs on a machine that is warm from another
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            scores[name] = await ways[name](texts, batch_size)
            rates[name].append(len(texts) / (time.perf_counter() - start))
            console.print(f"round {round_ + 1} of {rounds}: {name}: {rates[name][-1]:.2f} rows/s")
    return rates, scores


def same_share(a: Scores, b: Scores) -> float:
    """Fraction of rows with the same answer."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def figures_of(
    rates: dict[str, list[float]], scores: dict[str, Scores], single: Scores
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in rates:
        key = name.replace("bus, ", "").replace(", ", "_").replace("'", "").replace(" ", "_")
        if name.startswith("bus"):
            for reference, suffix in ((ALL, ""), (DIVIDED, "_agents_threads")):
                ratios = [a / b for a, b in zip(rates[name], rates[reference], strict=True)]
                figures[f"ratio_{key}{suffix}"] = round(statistics.median(ratios), 4)
            figures[f"same_predictions_{key}"] = same_share(scores[name], scores[ALL])
            drift = float(np.abs(scores[name] - scores[ALL]).max())
            figures[f"largest_score_difference_{key}"] = drift
        figures[f"rows_per_s_{key}"] = round(statistics.median(rates[name]), 3)
    figures["same_predictions_batch_1"] = same_share(single, scores[ALL][: len(single)])
    return figures


def show(console: Console, rates: dict[str, list[float]], figures: dict[str, float]) -> None:
    table = Table("", "rows/s, median", "to all threads", title="processes and bus, end to end")
    for name, seen in rates.items():
        ratio = statistics.median(a / b for a, b in zip(seen, rates[ALL], strict=True))
        table.add_row(name, f"{statistics.median(seen):.2f}", f"{ratio:.3f}")
    console.print(table)
    for name, value in figures.items():
        if name.startswith(("same", "largest")):
            console.print(f"{name}: {value:.6g}")


async def measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    resolved = fetch(resolve(load_scenario(args.scenario), source=args.scenario, device="cpu"))
    if args.threads:
        agents = {
            name: spec.model_copy(update={"threads": args.threads, "cpu_shares": {}})
            for name, spec in resolved.agents.items()
        }
        resolved = replace(resolved, agents=agents)
    if resolved.data is None:
        raise InputError("The scenario has no task.", hint="Give one with a task: and a bridge.")
    data = load_rows(resolved.data.dataset, resolved.data.split, config=Config.from_env())
    rows = [data.rows[i] for i in choose_rows(len(data), args.rows, args.seed)]
    texts = [row.text for row in rows]
    task = load_definition(resolved.data.dataset).spec()
    local = InProcess(resolved, task)
    ways: dict[str, Way] = {ALL: local.way(divided=False), DIVIDED: local.way(divided=True)}
    async with Runtime(resolved) as runtime:
        for in_flight in args.in_flight:
            ways[f"bus, in flight {in_flight}"] = over_bus(runtime, resolved, task, in_flight)
        rates, scores = await compare(ways, texts, args.batch, args.rounds, console)
        single = await over_bus(runtime, resolved, task, 2)(texts[: args.single], 1)
        pids = {name: info.pid for name, info in runtime.agents.items()}
    figures = figures_of(rates, scores, single)
    show(console, rates, figures)
    card = resolved.wire.card
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/overhead.py", *sys.argv[1:]]),
        "hardware": hardware().model_dump(),
        "versions": versions(),
        "settings": {
            "models": {name: choice.model for name, choice in resolved.choices.items()},
            "bridge": f"{resolved.wire.bridge}, sha256 {card.weights_sha256 if card else ''}",
            "data": f"{data.name} {data.split}, {len(rows)} rows, sha256 {rows_sha256(rows)}",
            "threads": {name: spec.threads for name, spec in resolved.agents.items()},
            "processes": len({os.getpid(), *pids.values()}),
            "batch_size": args.batch,
            "rounds": args.rounds,
            "rows_at_batch_1": len(single),
            "seed": args.seed,
        },
        "figures": figures,
        "rounds_rows_per_s": rates,
    }


def recorded(
    measure: Callable[[argparse.Namespace, Console], Coroutine[Any, Any, dict[str, Any]]],
    args: argparse.Namespace,
) -> int:
    """Measures, and writes the record to ``args.out`` or prints it; the exit code."""
    console = Console(stderr=True)
    try:
        record = asyncio.run(measure(args, console))
    except AgentwireError as error:
        console.print(f"agentwire: {error}", markup=False)
        return 2
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--single", type=int, default=200, help="rows that also go one by one")
    parser.add_argument("--threads", type=int, help="of each agent, instead of its share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    return recorded(measure, args)


if __name__ == "__main__":
    sys.exit(main())
