"""Two readers and a judge: each reader reads one half of a review, and the judge answers from both.

    agentwire train examples/fan_in.yaml          # trains the two bridges together
    python examples/fan_in.py --rows 200

Prints the judge's accuracy with both halves, and with one half replaced by that of another review,
so that only the other half is useful.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

import agentwire
from agentwire.config import Config
from agentwire.errors import InputError
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.scenario.shares import shares
from agentwire.task.datasets import load_rows
from agentwire.task.definitions import load_classification
from agentwire.task.metrics import wilson_interval

SCENARIO = Path(__file__).with_name("fan_in.yaml")
SENDERS = ["first", "second"]
BATCH = 16


async def main(rows: int, seed: int) -> None:
    resolved = resolve(load_scenario(SCENARIO), source=SCENARIO)
    data = resolved.data
    assert data is not None
    split = load_rows(data.dataset, data.split, config=Config.from_env(), path=data.path).rows
    chosen = random.Random(seed).sample(split, min(rows, len(split)))
    words = load_classification(data.dataset).label_words
    halves = [shares(row.text, 2) for row in chosen]
    others = halves[1:] + halves[:1]  # the halves of the next review in the random sample
    inputs = {
        "both halves": halves,
        "first half alone": [[a, b] for (a, _), (_, b) in zip(halves, others, strict=True)],
        "second half alone": [[a, b] for (_, b), (a, _) in zip(halves, others, strict=True)],
    }
    print(f"{len(chosen)} rows of {data.dataset} {data.split}, seed {seed}")
    async with agentwire.open(SCENARIO) as wire:
        for title, texts in inputs.items():
            right = 0
            for begin in range(0, len(texts), BATCH):
                part = slice(begin, begin + BATCH)
                outcomes = await wire.fan_in_batch(SENDERS, "judge", texts[part])
                right += sum(
                    isinstance(outcome, agentwire.Reply) and outcome.label == words[row.label]
                    for row, outcome in zip(chosen[part], outcomes, strict=True)
                )
            low, high = wilson_interval(right, len(texts))
            print(f"{title:<18} {right / len(texts):.3f}  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        asyncio.run(main(options.rows, options.seed))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
