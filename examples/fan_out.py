"""A reader and two judges: the text is read once, and both judges answer from the same soft tokens.

    python examples/fan_out.py --texts 40

Each text is asked twice: once with ``fan_out``, and once with a concurrent ``send`` to each judge,
for which the reader reads the text twice. The answers must be equal. The median times are printed
at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import agentwire

SCENARIO = Path(__file__).with_name("fan_out.yaml")
JUDGES = ["judge", "other"]
REVIEWS = [
    "A warm, generous film that finds new jokes in an old story.",
    "Two hours of noise in search of a single idea.",
    "The leads are so good that you forget how thin the plot is, and gladly.",
    "It looks expensive and feels cheap.",
    "Tender, funny and wise; I left wanting to call my mother.",
]


async def main(texts: int) -> None:
    took: dict[str, list[float]] = {"fan_out": [], "two sends": []}
    async with agentwire.open(SCENARIO) as wire:
        for number in range(texts + 2):
            text = f"{REVIEWS[number % len(REVIEWS)]} ({number})"  # every text is different
            begun = time.perf_counter()
            answers = await wire.fan_out("reader", JUDGES, text)
            between = time.perf_counter()
            sent = await asyncio.gather(*(wire.send("reader", judge, text) for judge in JUDGES))
            ended = time.perf_counter()
            labels = [a.label for a in answers.values() if isinstance(a, agentwire.Reply)]
            assert labels == [reply.label for reply in sent], (answers, sent)
            if number >= 2:  # the first texts include one-time costs
                took["fan_out"].append(1000 * (between - begun))
                took["two sends"].append(1000 * (ended - between))
            if number < len(REVIEWS):
                print(f"{labels[0]:<9} {text}")
    for way, times in took.items():
        print(f"{way:<10} p50 {statistics.median(times):6.1f} ms over {len(times)} texts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=40)
    asyncio.run(main(parser.parse_args().texts))
