"""A second recipe, searched for on held-out training rows: what was tried, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rendering.compared import paired, single, title
from rendering.goals import ACCURACY
from rendering.markdown import Record, table
from rendering.sample import DASH, listed, minus, sample, shown

NOT_APART = "the best of many and not told apart from it, so the bridge of the main table ships."


def made(record: Record) -> list[Record]:
    """The searches among the record's choices."""
    return [
        one
        for one in record.get("choices", [])
        if "winner" in one and str(one.get("job", "")).startswith("search.")
    ]


def section(record: Record, runs: Sequence[Record]) -> str:
    """Every search's candidates; the winners that were scored beside the main tables' bridges."""
    parts = [
        "### A second recipe, searched for on held-out training rows",
        *[_tried(record, one) for one in made(record)],
        _scored(record, runs),
    ]
    return "\n\n".join(part for part in parts if part)


def _tried(record: Record, search: Record) -> str:
    found: dict[str, list[Record]] = {}
    for one in search["tried"]:
        found.setdefault(one["name"], []).append(one)
    n = int(record["tasks"].get(search["task"], {}).get("held_out_rows", 0))
    samples = {name: sample(same, "held_out_accuracy", n) for name, same in found.items()}
    rows = []
    for name, same in found.items():
        losses = [run["loss"] for run in same if "loss" in run]
        rows.append([name, shown(samples[name]), f"{fmean(losses):.3f}" if losses else DASH])
    first, winner = next(iter(samples)), search["winner"]
    said = f"{title(search['task'])}, {search['direction']}: held-out rows choose *{winner}*"
    own = record["figures"].get(f"{search['task']}.{search['direction']}.bridge.held_out_mean")
    again = "" if own is None else f" (trained anew; the main table's seeds reached {own:.3f})"
    ends = samples[first], samples[winner]
    if winner == first:
        said += ", the recipe of the main table; test rows were not scored again."
    elif ends[0] is not None and ends[1] is not None:
        difference = minus(ends[1], ends[0])
        said += f", {difference} above *{first}*{again}"
        said += "." if difference.sign else f": {NOT_APART}"
    return "\n\n".join([said, table(["tried", "held-out accuracy", "held-out loss"], rows)])


def _scored(record: Record, runs: Sequence[Record]) -> str:
    rows, goals = [], []
    words: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for task, direction in dict.fromkeys((run["task"], run["direction"]) for run in runs):
        one = sample([run for run in runs if (run["task"], run["direction"]) == (task, direction)])
        own = single(record, task, direction)
        if one is None or own is None:
            continue
        name, same_rows = f"{title(task)} {direction}", paired(record, task, direction, "searched")
        if same_rows is None:
            difference = minus(one, own)
            sign, words_of_it = difference.sign, str(difference)
        else:
            value, low, high = (same_rows[key] for key in ("difference", "low95", "high95"))
            sign = (low > 0) - (high < 0)
            words_of_it = f"{value:+.3f} ({low:+.3f} .. {high:+.3f})"
        rows.append([f"{title(task)}, {direction}", str(one), str(own), words_of_it])
        words[sign].append(name)
        goal = ACCURACY.get(task) if direction == "forward" else None
        if goal is not None:
            met = "reached" if one.mean >= goal else f"missed by {goal - one.mean:.3f}"
            goals.append(f"Goal on {name}, {goal:.2f}: {met}.")
    if not rows:
        return ""
    said = [
        f"{how} the bridge of the main table on {listed(words[sign])}"
        for sign, how in ((1, "above"), (0, "not told apart from"), (-1, "**below**"))
        if words[sign]
    ]
    header = ["test rows", "searched recipe", "bridge of the main table", "difference (95 %)"]
    return "\n\n".join(
        [table(header, rows), f"The searched recipe is {'; '.join(said)}.{' '.join(['', *goals])}"]
    )
