"""Flat figures of the studies."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Run = dict[str, Any]


def study_figures(studies: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """Names as in docs/accuracy-record.md."""
    groups: dict[str, list[float]] = defaultdict(list)
    single: dict[str, float] = {}
    for run in studies.get("soft_tokens", ()):
        groups[f"{_pair(run)}.soft_tokens.{run['budget']}.m{run['soft_tokens']}"].append(
            run["accuracy"]
        )
    for run in studies.get("universal", ()):
        seen = "" if run["seen"] else "unseen."
        groups[f"universal.{seen}{run['task']}.{run['direction']}"].append(run["accuracy"])
    for run in studies.get("passkey", ()):
        name = f"passkey.{run['direction']}.m{run['soft_tokens']}"
        groups[f"{name}.digit"].append(run["digit_accuracy"])
        groups[f"{name}.exact"].append(run["exact_match"])
    for run in studies.get("layers", ()):
        if "held_out_accuracy" in run:
            part = "" if "train_rows" in run else ".all_rows"
            name = f"{_pair(run)}.layer{run['layer']}{part}.held_out"
            single[name] = run["held_out_accuracy"]
        if "probe_mean_held_out" in run:
            name = f"{_pair(run)}.layer{run['layer']}.probe_mean.held_out"
            single[name] = run["probe_mean_held_out"]
    for study, pattern in (("universal", "universal.{}"), ("searched", "{}.searched")):
        for run in studies.get(f"{study}_minus_bridge", ()):
            name = f"{pattern.format(_pair(run))}.minus_bridge"
            single |= {f"{name}.{key}": run[key] for key in ("difference", "low95", "high95")}
            single[f"{name}.mcnemar_p"] = run["mcnemar"]["p_value"]
    for run in studies.get("searched", ()):
        groups[f"{_pair(run)}.searched"].append(run["accuracy"])
    tried: dict[str, list[float]] = defaultdict(list)  # of each the mean over its seeds
    for study in ("sensitivity", "ablation", "first_try"):
        for run in studies.get(study, ()):
            if "held_out_accuracy" in run:
                name = run["name"].replace(" ", "_").replace(",", "").replace("'", "")
                tried[f"{_pair(run)}.{study}.{name}.held_out"].append(run["held_out_accuracy"])
    single |= {name: statistics.fmean(values) for name, values in tried.items()}
    for name, values in groups.items():
        single[f"{name}.mean"] = statistics.fmean(values)
        single[f"{name}.seeds"] = len(values)
    return single


def _pair(run: Run) -> str:
    return f"{run['task']}.{run['direction']}"
