"""The fault matrix: every fault, many rounds, at random moments, with real processes.

    python bench/chaos [--rounds 20] [--seed 0] [--only link_cut,...] [--out chaos.json]

Every answer must equal the answer of a run without faults. Exits with 1 if a request was lost,
ended twice, or got a wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import parser_of, provenance, write

from chaos.matrix import RUNNER, names, run_matrix
from chaos.rig import Tally


def table(tallies: dict[str, Tally]) -> str:
    lines = [
        f"{'fault':20} {'rounds':>6} {'requests':>8} {'lost':>5} {'twice':>5} {'wrong':>5}  errors"
    ]
    for name, t in tallies.items():
        errors = ", ".join(f"{code} {n}" for code, n in sorted(t.errors.items()))
        counts = f"{t.rounds:6} {t.requests:8} {t.lost:5} {t.duplicated:5} {t.wrong:5}"
        lines.append(f"{name:20} {counts}  {errors}")
    return "\n".join(lines)


def record(tallies: dict[str, Tally], args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {
        **provenance(),
        "settings": {
            "models": "fake backend (deterministic, no weights)",
            "rounds": args.rounds,
            "seed": args.seed,
            "minutes": round(seconds / 60, 1),
        },
        "figures": {
            f"{name}_{what}": getattr(t, what)
            for name, t in tallies.items()
            for what in ("rounds", "requests", "lost", "duplicated", "wrong")
        },
        "errors": {name: dict(t.errors) for name, t in tallies.items()},
        "notes": {name: dict(t.notes) for name, t in tallies.items() if t.notes},
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"of: {', '.join([*names(), RUNNER])}")
    args = parser.parse_args()
    logging.getLogger("agentwire").setLevel(logging.ERROR)  # broken connections are expected
    start = time.monotonic()
    only = [name for name in args.only.split(",") if name]

    def report(name: str, tally: Tally) -> None:
        print(table({name: tally}).splitlines()[1], flush=True)
        for problem in tally.problems:
            print(f"    {problem}", flush=True)

    tallies = asyncio.run(run_matrix(args.rounds, args.seed, only, report))
    print(table(tallies))
    if args.out:
        write(record(tallies, args, time.monotonic() - start), args.out)
    return 0 if all(tally.clean for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
