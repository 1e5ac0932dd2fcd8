"""Whether an answer depends on its batch: every row of a split alone, and in batches of 16.

Both go over the bridge of the scenario, through processes and bus. Sums of floating-point numbers
depend on their order, and the order on how many rows a product has; so scores differ in their last
digits, and the prediction of a row may differ where its two best labels score alike. Each row that
differs is recorded with its margin: by how much its best label leads.

    python bench/batch_invariance.py [--rows 0] [--out bench/results/batch-invariance-cpu.json]
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from overhead import SCENARIO, Scores, over_bus, recorded
from rich.console import Console

from agentwire.config import Config
from agentwire.errors import InputError
from agentwire.evaluation.predictions import choose_rows
from agentwire.evaluation.summary import hardware, versions
from agentwire.runtime import Runtime
from agentwire.scenario.fetch import fetch
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.task.datasets import load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.rows import rows_sha256


def margins(scores: Scores) -> Scores:
    """By how much the best label of each row leads, in nats, [n]."""
    ordered = np.sort(scores, axis=1)
    lead: Scores = ordered[:, -1] - ordered[:, -2]
    return lead


def figures_of(alone: Scores, together: Scores, labels: list[int]) -> dict[str, Any]:
    """Agreement of the two, and the accuracy of each."""
    first, second = alone.argmax(axis=1), together.argmax(axis=1)
    differ = np.flatnonzero(first != second)
    lead = margins(together)
    return {
        "rows": len(labels),
        "same_predictions": len(labels) - len(differ),
        "same_share": float((first == second).mean()),
        "largest_score_difference": float(np.abs(alone - together).max()),
        "median_score_difference": float(np.median(np.abs(alone - together).max(axis=1))),
        "largest_margin_of_a_row_that_differs": float(lead[differ].max(initial=0.0)),
        "median_margin_of_all_rows": float(np.median(lead)),
        "correct_alone": int((first == labels).sum()),
        "correct_in_batches": int((second == labels).sum()),
    }


async def measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    resolved = fetch(resolve(load_scenario(args.scenario), source=args.scenario, device="cpu"))
    source = resolved.data
    if source is None:
        raise InputError("The scenario has no task.", hint="Give one with a task: and a bridge.")
    # Otherwise an agent joins rows of several messages to one batch.
    agents = {n: s.model_copy(update={"batch_by": "message"}) for n, s in resolved.agents.items()}
    resolved = replace(resolved, agents=agents)
    data = load_rows(source.dataset, source.split, config=Config.from_env())
    rows = [data.rows[i] for i in choose_rows(len(data), args.rows, args.seed)]
    texts = [row.text for row in rows]
    task = load_definition(source.dataset).spec()
    async with Runtime(resolved) as runtime:
        send = over_bus(runtime, resolved, task, 2)
        together = await send(texts, args.batch)
        console.print(f"{len(rows)} rows in batches of {args.batch}: done")
        alone = await send(texts, 1)
    figures = figures_of(alone, together, [row.label for row in rows])
    for name, value in figures.items():
        console.print(f"{name}: {value:,.6g}")
    card = resolved.wire.card
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/batch_invariance.py", *sys.argv[1:]]),
        "hardware": hardware().model_dump(),
        "versions": versions(),
        "settings": {
            "models": {name: choice.model for name, choice in resolved.choices.items()},
            "bridge": f"{resolved.wire.bridge}, sha256 {card.weights_sha256 if card else ''}",
            "data": f"{data.name} {data.split}, {len(rows)} rows, sha256 {rows_sha256(rows)}",
            "threads": {name: spec.threads for name, spec in resolved.agents.items()},
            "batch_sizes": [1, args.batch],
            "seed": args.seed,
        },
        "figures": figures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--rows", type=int, default=0, help="0: all")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    return recorded(measure, args)


if __name__ == "__main__":
    sys.exit(main())
