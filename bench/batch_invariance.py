"""Does an answer depend on its batch? Every row of a split alone, and in batches of 16.

Both go over the bridge of the scenario, through processes and bus. Sums of floating-point numbers
depend on their order, which depends on the number of rows, so scores differ in their last digits. A
prediction may differ if its two best labels score almost alike; the record has the margins.

    python bench/batch_invariance.py [--rows 0] [--out bench/results/batch-invariance-cpu.json]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from overhead import Scores, over_bus
from records import SCENARIO, chosen_rows, models_of, parser_of, provenance, write

from agentwire.errors import AgentwireError
from agentwire.runtime import Runtime
from agentwire.scenario.fetch import fetch
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.task.definitions import load_definition


def margins(scores: Scores) -> Scores:
    """Lead of the best label of each row, in nats [n]."""
    ordered = np.sort(scores, axis=1)
    lead: Scores = ordered[:, -1] - ordered[:, -2]
    return lead


def figures_of(alone: Scores, together: Scores, labels: list[int]) -> dict[str, Any]:
    """Agreement of both, and the accuracy of each."""
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


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    resolved = fetch(resolve(load_scenario(args.scenario), source=args.scenario, device="cpu"))
    rows, data = chosen_rows(resolved, args.rows, args.seed)
    texts = [row.text for row in rows]
    assert resolved.data is not None
    task = load_definition(resolved.data.dataset).spec()
    # By default an agent joins rows of several messages to one batch.
    agents = {n: s.model_copy(update={"batch_by": "message"}) for n, s in resolved.agents.items()}
    resolved = replace(resolved, agents=agents)
    async with Runtime(resolved) as runtime:
        send = over_bus(runtime, resolved, task, 2)
        together = await send(texts, args.batch)
        print(f"{len(rows)} rows in batches of {args.batch}: done", file=sys.stderr)
        alone = await send(texts, 1)
    return {
        **provenance(),
        "settings": {
            **models_of(resolved),
            "data": data,
            "batch_sizes": [1, args.batch],
            "seed": args.seed,
        },
        "figures": figures_of(alone, together, [row.label for row in rows]),
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--scenario", type=Path, default=SCENARIO)
    parser.add_argument("--rows", type=int, default=0, help="0: all")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        record = asyncio.run(measure(args))
    except AgentwireError as error:
        print(f"agentwire: {error}", file=sys.stderr)
        return 2
    write(record, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
