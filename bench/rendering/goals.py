"""Goals that were set before anything was measured, and whether each is reached: computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from rendering.compared import figure, outcome, title
from rendering.markdown import Record, table
from rendering.sample import listed

ACCURACY = {"sst2": 0.88, "ag_news": 0.91, "trec": 0.97, "banking77": 0.88}
"""Forward, mean of the seeds, whole test set."""
GAP = 0.03
AHEAD = 0.02
BEHIND = 0.01
TASKS_AHEAD = 3
PROBES = ("probe_mean", "probe_attention")
RELAYS = ("text_relay", "lora_relay", "lora_reads_relay")
PAYLOADS = ("zero_payload", "shuffled_payload")


def section(record: Record) -> str:
    """Every goal with what was measured; a goal without figures is left out, or says what lacks."""
    parts = [_accuracy(record), _gaps(record), _rest(record)]
    return "\n\n".join(part for part in parts if part)


def _accuracy(record: Record) -> str:
    figures = record["figures"]
    rows = []
    for task, goal in ACCURACY.items():
        mean = figures.get(f"{task}.forward.bridge.mean")
        if mean is not None:
            missed = f"missed by {goal - mean:.3f}"
            rows.append(
                [title(task), f"{goal:.2f}", f"{mean:.3f}", "reached" if mean >= goal else missed]
            )
    if not rows:
        return ""
    head = "### Goals set before measuring (forward, mean of the seeds)"
    return "\n\n".join([head, table(["task", "goal", "bridge", ""], rows)])


def _gaps(record: Record) -> str:
    figures = record["figures"]
    rows = []
    for task in record["tasks"]:
        gap = figures.get(f"{task}.gap.bridge.difference")
        if gap is not None:
            ends = [figures.get(f"{task}.{d}.bridge.mean") for d in ("forward", "reverse")]
            met = "reached" if gap <= GAP else f"missed by {gap - GAP:.3f}"
            rows.append([title(task), *map(figure, ends), f"{gap:+.3f}", met])
    if not rows:
        return ""
    head = f"### Forward minus reverse (goal: reverse at most {GAP} below)"
    return "\n\n".join([head, table(["task", "forward", "reverse", "difference", ""], rows)])


def _rest(record: Record) -> str:
    lines = [
        line
        for direction in record["directions"]
        for line in (
            *_probes(record, direction),
            *_relays(record, direction),
            *_payloads(record, direction),
        )
    ]
    if not lines:
        return ""
    head = "### Other goals set before measuring"
    return "\n\n".join([head, "\n".join(f"- {line}" for line in lines)])


def _entries(record: Record, direction: str, method: str) -> dict[str, Record]:
    """Comparisons of the bridge with a method, by task."""
    return {
        entry["task"]: entry
        for entry in record.get("comparisons", [])
        if (entry["direction"], entry["second"]) == (direction, method)
    }


def _probes(record: Record, direction: str) -> Iterator[str]:
    mean = _entries(record, direction, "probe_mean")
    if not mean:
        return
    ahead = [
        title(task)
        for task, entry in mean.items()
        if entry["difference"] >= AHEAD and outcome(entry) == "bridge"
    ]
    verdict = "reached" if len(ahead) >= TASKS_AHEAD else "missed"
    yield (
        f"{direction}: above the mean-pooled probe by {AHEAD} or more, told apart, on "
        f"{TASKS_AHEAD} tasks: {verdict}, on {len(ahead)} of {len(mean)}"
        + (f" ({listed(ahead)})" if ahead else "")
        + "."
    )
    if direction == "reverse":
        for method in PROBES:
            yield from _at_or_above(record, direction, method)
    worst = min(
        (
            (entry["difference"], title(task), method)
            for method in PROBES
            for task, entry in _entries(record, direction, method).items()
        ),
        default=None,
    )
    if worst is not None:
        difference, task, method = worst
        verdict = "reached" if difference >= -BEHIND else f"missed by {-BEHIND - difference:.3f}"
        name = record["methods"][method]["title"]
        yield (
            f"{direction}: never more than {BEHIND} below a probe: {verdict}; the least of all "
            f"differences is {difference:+.3f} ({task}, {name})."
        )


def _at_or_above(record: Record, direction: str, method: str) -> Iterator[str]:
    entries = _entries(record, direction, method)
    below = [
        f"{title(t)} ({e['difference']:+.3f})" for t, e in entries.items() if e["difference"] < 0
    ]
    if entries:
        name = record["methods"][method]["title"]
        verdict = f"missed on {listed(below)}" if below else f"reached ({_count(entries)})"
        yield f"{direction}: at or above {name}, of the sender's own states, everywhere: {verdict}."


def _relays(record: Record, direction: str) -> Iterator[str]:
    for method in RELAYS:
        entries = _entries(record, direction, method)
        if entries:
            words = {
                kind: [title(task) for task, entry in entries.items() if outcome(entry) == kind]
                for kind in ("bridge", "", "baseline")
            }
            won, lacking = len(words["bridge"]), _lacking(record, direction, entries)
            verdict = "missed" if won < len(entries) else "open" if lacking else "reached"
            name = record["methods"][method]["title"]
            yield (
                f"{direction}: above {name} on every task: {verdict}, on {won} of "
                f"{len(entries)}"
                + (f"; not measured on {listed(lacking)}" if lacking else "")
                + (f"; not told apart on {listed(words[''])}" if words[""] else "")
                + (f"; **beaten on {listed(words['baseline'])}**" if words["baseline"] else "")
                + "."
            )


def _lacking(record: Record, direction: str, known: Collection[str]) -> list[str]:
    """Tasks with a goal where the bridge was measured and something else was not."""
    return [
        title(task)
        for task in ACCURACY
        if f"{task}.{direction}.bridge.mean" in record["figures"] and task not in known
    ]


def _payloads(record: Record, direction: str) -> Iterator[str]:
    """Payloads that say nothing of the row must not do better than the largest class."""
    for method in PAYLOADS:
        above = above_chance(record, direction, method)
        if above is not None:
            name = record["methods"][method]["title"]
            measured = [
                t for t in record["tasks"] if _low(record, t, direction, method) is not None
            ]
            verdict = f"missed on {listed(above)}" if above else "reached"
            yield (
                f"{direction}: {name} no better than the largest class: {verdict} "
                f"({_count(measured)})."
            )


def above_chance(record: Record, direction: str, method: str) -> list[str] | None:
    """Tasks where a control's interval lies above the share of the largest class; None: it was
    measured nowhere."""
    lows = {task: _low(record, task, direction, method) for task in record["tasks"]}
    known = {task: low for task, low in lows.items() if low is not None}
    if not known:
        return None
    return [title(t) for t, low in known.items() if low > record["tasks"][t]["majority"]]


def _low(record: Record, task: str, direction: str, method: str) -> float | None:
    low: float | None = record["figures"].get(f"{task}.{direction}.{method}.wilson95_low")
    return low


def _count(known: Collection[str]) -> str:
    return f"{len(known)} task{'s' if len(known) != 1 else ''}"
