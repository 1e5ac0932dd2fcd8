"""Cost of processes and bus: a scenario's bridge beside the same two models called in turn.

Both sides score the same rows in the same batches with the same bridge. ``in process`` calls the
sender's ``encode`` and the receiver's ``score_soft`` in this process, first with all CPU threads,
then with as many as the agents have. ``bus`` sends the rows through broker and agent processes with
one or more batches in flight. Rounds alternate; a figure is the median over rounds of the ratio to
``all threads`` of the same round. Filling and draining the pipeline is part of the time.

    python bench/overhead.py [--rows 480] [--rounds 5] [--out bench/results/overhead-cpu.json]

Predictions of both sides are compared row by row, and so are those of batches of one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from records import SCENARIO, chosen_rows, models_of, parser_of, provenance, write

from agentwire.benchmark.plan import turns
from agentwire.errors import AgentwireError, InputError
from agentwire.model.transformers import TransformersBackend
from agentwire.runtime import Runtime
from agentwire.runtime.pending import replies_of
from agentwire.scenario.fetch import fetch
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.task.definitions import load_definition
from agentwire.wire.messages import TaskSpec

ALL, DIVIDED = "in process, all threads", "in process, agents' threads"
Scores = npt.NDArray[np.float32]  # [rows, labels]
Scorer = Callable[[Sequence[str], int], Awaitable[Scores]]
"""Scores texts in batches of a size."""


class InProcess:
    """Both models in this process."""

    def __init__(self, resolved: Resolved, task: TaskSpec) -> None:
        wire = resolved.wire
        if wire.folder is None:
            raise InputError("The wire has no bridge.", hint="Train one: `agentwire train`.")
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

    def scorer(self, *, divided: bool) -> Scorer:
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


def over_bus(runtime: Runtime, resolved: Resolved, task: TaskSpec, in_flight: int) -> Scorer:
    """The same rows through agents and bus. A text relay is an error."""
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
        replies = replies_of([outcome async for batch in batches for outcome in batch])
        rows = [[reply.scores[label] for label in task.labels] for reply in replies]
        return np.array(rows, dtype=np.float32)

    return run


async def compare(
    scorers: Mapping[str, Scorer], texts: Sequence[str], batch_size: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Scores]]:
    """Rows a second of each scorer in each round, and its scores."""
    rates: dict[str, list[float]] = {name: [] for name in scorers}
    scores: dict[str, Scores] = {}
    for scorer in scorers.values():
        await scorer(texts[: 2 * batch_size], batch_size)
    for round_, name in turns([list(scorers)], rounds):
        start = time.perf_counter()
        scores[name] = await scorers[name](texts, batch_size)
        rates[name].append(len(texts) / (time.perf_counter() - start))
        rate = f"{rates[name][-1]:.2f} rows/s"
        print(f"round {round_ + 1} of {rounds}: {name}: {rate}", file=sys.stderr)
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


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    resolved = fetch(resolve(load_scenario(args.scenario), source=args.scenario, device="cpu"))
    if args.threads:
        agents = {
            name: spec.model_copy(update={"threads": args.threads, "cpu_shares": {}})
            for name, spec in resolved.agents.items()
        }
        resolved = replace(resolved, agents=agents)
    rows, data = chosen_rows(resolved, args.rows, args.seed)
    texts = [row.text for row in rows]
    assert resolved.data is not None
    task = load_definition(resolved.data.dataset).spec()
    local = InProcess(resolved, task)
    scorers = {ALL: local.scorer(divided=False), DIVIDED: local.scorer(divided=True)}
    async with Runtime(resolved) as runtime:
        for in_flight in args.in_flight:
            scorers[f"bus, in flight {in_flight}"] = over_bus(runtime, resolved, task, in_flight)
        rates, scores = await compare(scorers, texts, args.batch, args.rounds)
        single = await over_bus(runtime, resolved, task, 2)(texts[: args.single], 1)
        pids = {name: info.pid for name, info in runtime.agents.items()}
    return {
        **provenance(),
        "settings": {
            **models_of(resolved),
            "data": data,
            "processes": len({os.getpid(), *pids.values()}),
            "batch_size": args.batch,
            "rounds": args.rounds,
            "rows_at_batch_1": len(single),
            "seed": args.seed,
        },
        "figures": figures_of(rates, scores, single),
        "rounds_rows_per_s": rates,
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--single", type=int, default=200, help="rows that also go one by one")
    parser.add_argument("--threads", type=int, help="of each agent, instead of its share")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        record = asyncio.run(measure(args))
    except AgentwireError as error:
        print(f"agentwire: {error}", file=sys.stderr)
        return 2
    for name, value in record["figures"].items():
        print(f"{name}: {value:.6g}", file=sys.stderr)
    write(record, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
