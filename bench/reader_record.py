"""Puts the results of ``bench/reader.py`` together into bench/results/reader-small.json.

    python bench/reader_record.py FOLDER --data DATA [--bus RUN.json] --out RECORD.json

FOLDER holds what the trainings wrote, one JSON file each with answers to all rows. Figures are
percent; intervals are bootstrap intervals over rows (seed 0), differences are paired by row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from agentwire.task.answers import exact_match, f1
from agentwire.task.metrics import bootstrap_interval, paired_bootstrap

SIZES = (16, 32, 64, 128)
STEPS = 6000
CUT = "text-cuts-1_16_32_64_128-steps1200"
WHOLE = "text-cuts0-steps1000"
CONTROLS = ("zero", "shuffled", "mean")
SENDER_BYTES, SOFT_BYTES = 1088 * 2, 640 * 2
"""Bytes of one latent, and of one soft token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bus", type=Path, help="result of `agentwire run scenarios/squad.yaml`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = {file.stem: json.loads(file.read_text()) for file in args.folder.glob("*.json")}
    figures: dict[str, Any] = {}
    for name in ("squad", "hotpotqa"):
        lines = (args.data / name / "validation.jsonl").read_text(encoding="utf-8").split("\n")
        answers = [json.loads(line)["answers"] for line in lines if line]
        figures |= figures_of(name, runs, answers)
    record = {
        "kind": "reader",
        "started": "2026-11-30",
        "command": "python bench/reader.py train main:add=all,seed=0,steps=6000 …",
        "hardware": "two NVIDIA H200, one training on each; models in bfloat16",
        "models": {"sender": "smollm2-135m-instruct", "receiver": "gemma-3-270m"},
        "data": "SQuAD v1.1 dev, 1,000 rows; HotpotQA distractor dev, 1,100 rows",
        "notes": [
            "Answers are greedy. EM and F1 of the official SQuAD evaluation, in percent.",
            "Each frozen configuration was scored once on the test rows.",
            "Longer texts are read in segments of at most 512 tokens with M soft tokens each; "
            "that concerns 4 rows of SQuAD and 1,095 of HotpotQA (about 3 segments each).",
            "The third seed was cut off after 3,000 of 6,000 steps by the end of the lease.",
        ],
        "trainings": {
            name: {key: run[key] for key in ("seconds", "best", "curve")}
            for name, run in runs.items()
        },
        "figures": figures,
    }
    if args.bus is not None:
        record["bus"] = through_bus(json.loads(args.bus.read_text()))
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def figures_of(name: str, runs: dict[str, Any], answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    def scores(run: str, key: str) -> list[float]:
        given = runs[run][f"{name}.{key}"]["answers"]
        return [100 * f1(text, right) for text, right in zip(given, answers, strict=True)]

    def both(run: str, key: str, title: str) -> dict[str, Any]:
        given, values = runs[run][f"{name}.{key}"]["answers"], scores(run, key)
        em = fmean(100.0 * exact_match(t, r) for t, r in zip(given, answers, strict=True))
        interval = [round(v, 2) for v in bootstrap_interval(values)]
        faults = sum(runs[run][f"{name}.{key}"]["faults"].values())
        return {
            f"{title}.f1": round(fmean(values), 2), f"{title}.f1_95": interval,
            f"{title}.em": round(em, 2), f"{title}.faults": round(faults, 2),
        }  # fmt: skip

    found: dict[str, Any] = {}
    seeds = [run for run in runs if run.startswith("main-addall") and run.endswith(f"-steps{STEPS}")
             and "lora" not in run]  # fmt: skip
    for size in SIZES:
        parts = [both(run, str(size), "x") for run in sorted(seeds)]
        title = f"reader.m{size}"
        for key in ("f1", "em", "faults"):
            values = [part[f"x.{key}"] for part in parts]
            found[f"{title}.{key}.mean"] = round(fmean(values), 2)
            found[f"{title}.{key}.seeds"] = values
        found |= both(f"main-addnone-seed0-steps{STEPS}", str(size), f"soft_alone.m{size}")
        lora = next(run for run in runs if "lora" in run)
        found |= both(lora, str(size), f"receiver_lora.m{size}")
        found |= both(CUT, str(size), f"token_budget_{size}")
        pair = paired_bootstrap(scores(sorted(seeds)[0], str(size)), scores(CUT, str(size)))
        found[f"{title}.minus_token_budget.f1"] = round(pair.difference, 2)
        found[f"{title}.minus_token_budget.f1_95"] = [round(v, 2) for v in pair.interval95]
    for control in CONTROLS:
        values = runs[sorted(seeds)[0]][f"{name}.64.{control}"]
        found[f"{control}_payload.m64.f1"] = round(values["f1"], 2)
    found |= both(WHOLE, "0", "text_prompt_tuned") | both(CUT, "-1", "question_only")
    return {f"{name}.{key}": value for key, value in found.items()}


def through_bus(run: dict[str, Any]) -> dict[str, Any]:
    """The same bridge as it is shipped (int8 rows), through processes and bus, on two cores."""
    bridge = run["methods"]["bridge"]
    return {
        "command": run["command"], "started": run["started"], "hardware": run["hardware"],
        "rows": run["dataset"]["rows"], "answers": bridge["answers"], "errors": bridge["errors"],
        "payload_bytes": bridge["payload_bytes"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
