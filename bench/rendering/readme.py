"""README's short table of accuracies, between two markers: computed, never written by hand."""

from __future__ import annotations

from statistics import fmean

from rendering.compared import DASH, figure, outcome, title
from rendering.goals import PAYLOADS, above_chance
from rendering.markdown import Record, Records, replaced, table
from rendering.sample import listed

BEGIN = "<!-- accuracies: made by bench/render.py -->"
END = "<!-- end of accuracies -->"


def renewed(readme: str, records: Records) -> str:
    """The README with the part between its markers made from the accuracy record.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    record = next(r for r in records.values() if r.get("kind") == "accuracy")
    return replaced(readme, BEGIN, END, block(record))


def block(record: Record) -> str:
    """The table, and who wins where."""
    header = ["task", "test rows"]
    for ends in record["directions"].values():
        pair = " -> ".join(name.split("-")[0] for name in (ends["sender"], ends["receiver"]))
        header += [f"{pair}: bridge", "best baseline"]
    rows = []
    for task, about in record["tasks"].items():
        row = [title(task), f"{about['rows']:,}"]
        for direction in record["directions"]:
            row += _cells(record, task, direction)
        rows.append(row)
    parts = [table(header, rows), _verdict(record), _partly(record), _universal(record)]
    return "\n\n".join(part for part in parts if part)


def _baselines(record: Record, task: str, direction: str) -> dict[str, float]:
    """Means of the baselines that were measured there."""
    found = {
        method: record["figures"].get(f"{task}.{direction}.{method}.mean")
        for method, about in record["methods"].items()
        if about["kind"] == "baseline"
    }
    return {method: mean for method, mean in found.items() if mean is not None}


def _cells(record: Record, task: str, direction: str) -> tuple[str, str]:
    own = figure(record["figures"].get(f"{task}.{direction}.bridge.mean"))
    means = _baselines(record, task, direction)
    if not means:
        return own, DASH
    best = max(means, key=lambda method: means[method])
    text = f"{record['methods'][best]['title']} {means[best]:.3f}"
    return own, f"**{text}**" if _outcomes(record, task, direction).get(
        best
    ) == "baseline" else text


def _outcomes(record: Record, task: str, direction: str) -> dict[str, str]:
    return {
        entry["second"]: outcome(entry)
        for entry in record.get("comparisons", [])
        if (entry["task"], entry["direction"]) == (task, direction)
    }


def _verdict(record: Record) -> str:
    """Where a baseline beats the bridge, where neither wins, and what the controls do."""
    lines = [
        f"- {words}, {direction}: {'; '.join(places)}."
        for verdict, words in (("baseline", "beats the bridge"), ("", "not told apart from it"))
        for direction in record["directions"]
        if (places := _places(record, direction, verdict))
    ]
    beaten = any(line.startswith("- beats") for line in lines)
    if beaten:
        head = ["**Bold: the baseline beats the bridge** on the same rows. Of all baselines:"]
    else:
        head = ["No baseline that was measured beats the bridge."] if lines else []
    return "\n\n".join([*head, *(["\n".join(lines)] if lines else []), _controls(record)])


def _places(record: Record, direction: str, wanted: str) -> list[str]:
    """Tasks, each with the baselines that have this outcome there and their means."""
    places = []
    for task in record["tasks"]:
        outcomes = _outcomes(record, task, direction)
        named = [
            f"{record['methods'][method]['title']} ({mean:.3f})"
            for method, mean in _baselines(record, task, direction).items()
            if outcomes.get(method) == wanted
        ]
        places += [f"{title(task)}: {', '.join(named)}"] if named else []
    return places


def _controls(record: Record) -> str:
    chance = [
        name
        for method in PAYLOADS
        for direction in record["directions"]
        for name in above_chance(record, direction, method) or []
    ]
    if chance:
        return f"Zero or shuffled payloads do better than chance on {listed(chance)}."
    return "Zero and shuffled payloads stay at chance."


def _partly(record: Record) -> str:
    """Baselines that lack a figure where the bridge has one: they might win there."""
    pairs = [
        (task, direction)
        for direction in record["directions"]
        for task in record["tasks"]
        if f"{task}.{direction}.bridge.mean" in record["figures"]
        and _baselines(record, task, direction)
    ]
    lacking: dict[int, list[str]] = {}
    for method, about in record["methods"].items():
        if about["kind"] == "baseline":
            there = sum(f"{t}.{d}.{method}.mean" in record["figures"] for t, d in pairs)
            if there < len(pairs):
                lacking.setdefault(there, []).append(about["title"])
    if not lacking:
        return ""
    words = [
        f"{there} of {len(pairs)} ({'; '.join(names)})" for there, names in sorted(lacking.items())
    ]
    return f"Measured on some of the tasks and directions alone: {', '.join(words)}."


def _universal(record: Record) -> str:
    figures = record["figures"]
    means = [
        f"{title(task)} {figures[name]:.3f}"
        for task in record["tasks"]
        for direction in record["directions"]
        if (name := f"universal.{task}.{direction}.mean") in figures
    ]
    if not means:
        return ""
    text = (
        "One universal bridge for all of them, the question asked of the receiver alone: "
        f"{', '.join(means)}."
    )
    unseen: dict[str, list[Record]] = {}
    for run in record.get("studies", {}).get("universal", []):
        if not run["seen"]:
            unseen.setdefault(run["task"].replace("_", " "), []).append(run)
    words = [
        f"{task} {fmean(run['accuracy'] for run in runs):.3f} (largest class "
        f"{runs[0]['majority']:.3f})"
        for task, runs in unseen.items()
    ]
    return text + (f" On tasks that it never saw: {', '.join(words)}." if words else "")
