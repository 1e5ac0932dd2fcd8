"""The accuracy record (docs/accuracy-record.md): bridges against baselines and controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rendering import goals, papers, relay, studies
from rendering.compared import DASH, figure, outcome, title
from rendering.markdown import Record, Records, provenance, table

HOW_TO_READ = (
    "Zero-shot methods (direct, text relay, few-shot) pick the label word that the model finds "
    "likeliest, uncalibrated: a model that prefers one word whatever it reads may fall below "
    "chance. Of the controls, zero and shuffled payloads and blind prompt tuning know nothing of "
    "the row and should stay at chance. Label relay is what one byte carries: the sender's own "
    "zero-shot answer. Random sender is a bridge of its own, trained at equal budget on a sender "
    "with random weights: such states still tell the words apart, so it is to be read against the "
    "bridge, not against chance; the distance between the two is what the sender's pretraining "
    "gives."
)


def owns(name: str, record: Record) -> bool:
    """The record says so itself."""
    return record.get("kind") == "accuracy"


def chapter(records: Records) -> str:
    """All sections of each accuracy record."""
    return "\n\n".join(_record(record) for record in records.values())


def draw(records: Records, folder: Path) -> list[Path]:
    """The pictures of each accuracy record, as SVG and PNG."""
    mine = [record for name, record in records.items() if owns(name, record)]
    return [file for record in mine for file in studies.draw(record, folder)]


def _record(record: Record) -> str:
    parts = [
        "## Accuracy: bridges, baselines and controls",
        _head(record),
        *(_direction(record, direction) for direction in record["directions"]),
        goals.section(record),
        relay.section(record),
        _choices(record),
        *studies.sections(record),
        _shipped(record),
        papers.section(),
        _missed(record),
    ]
    return "\n\n".join(part for part in parts if part)


# -- what it is -----------------------------------------------------------------------------------


def _head(record: Record) -> str:
    lines = [
        *(
            f"- {name}: {ends['sender']} -> {ends['receiver']} (stand-ins)"
            for name, ends in record["directions"].items()
        ),
        *provenance(record),
    ]
    header = [
        "task",
        "split",
        "test rows",
        "classes",
        "largest class",
        "training split",
        "held out",
        "trained on",
    ]
    rows = [
        [
            title(name),
            task["split"],
            f"{task['rows']:,}",
            str(task["classes"]),
            figure(task.get("majority")),
            f"{task['train_split_rows']:,}",
            f"{task['held_out_rows']:,}",
            f"{task['train_rows']:,}" if "train_rows" in task else DASH,
        ]
        for name, task in record["tasks"].items()
    ]
    return "\n\n".join(
        [
            "\n".join(lines),
            "All trained methods saw the same training rows; settings were chosen on held-out "
            "training rows, and test rows were scored once for each frozen configuration. `a ± b` "
            "is the mean over seeds and its standard deviation; a range is the 95 % Wilson "
            f"interval of that mean over the test rows.{scored_again(record)}",
            table(header, rows),
            "Rows that share a sentence with a held-out row (SST-2 has phrases of its sentences) "
            "are trained on by nobody, so the last two columns may add up to less than the split.",
        ]
    )


def scored_again(record: Record) -> str:
    """A sentence on runs whose test rows were scored more than once, or nothing."""
    again = [run for run in record["runs"] if run.get("test_scorings", 1) > 1]
    if not again:
        return ""
    places = sorted({f"{title(run['task'])} {run['direction']}" for run in again})
    methods = sorted({record["methods"][run["method"]]["title"] for run in again})
    return (
        f" Scored twice, unchanged, after a job was lost: {', '.join(methods)} on "
        f"{', '.join(places)}."
    )


def tasks_of(record: Record, direction: str) -> list[str]:
    """Tasks that have a figure in this direction, in the record's order."""
    keys = record["figures"]
    return [
        task
        for task in record["tasks"]
        if any(key.startswith(f"{task}.{direction}.") and key.endswith(".mean") for key in keys)
    ]


# -- one direction --------------------------------------------------------------------------------


def _direction(record: Record, direction: str) -> str:
    tasks = tasks_of(record, direction)
    if not tasks:
        return ""
    ends = record["directions"][direction]
    parts = [
        f"### {direction.capitalize()}: {ends['sender']} -> {ends['receiver']}",
        _methods(record, direction, tasks),
        HOW_TO_READ,
        _differences(record, direction, tasks),
        _verdict(record, direction, tasks),
    ]
    return "\n\n".join(part for part in parts if part)


def _methods(record: Record, direction: str, tasks: Sequence[str]) -> str:
    figures = record["figures"]
    best = {task: _best(record, direction, task) for task in tasks}
    rows = []
    for method, about in record["methods"].items():
        cells = [_mean(figures, f"{task}.{direction}.{method}") for task in tasks]
        if all(cell == DASH for cell in cells):
            continue
        bold = [
            f"**{cell}**" if best[task] == method else cell
            for task, cell in zip(tasks, cells, strict=True)
        ]
        rows.append([about["title"], about["kind"], *bold])
    return table(["method", "kind", *map(title, tasks)], rows)


def _best(record: Record, direction: str, task: str) -> str | None:
    """The method with the highest mean, controls left out."""
    means = {
        method: record["figures"].get(f"{task}.{direction}.{method}.mean")
        for method, about in record["methods"].items()
        if about["kind"] != "control"
    }
    known = {method: mean for method, mean in means.items() if mean is not None}
    return max(known, key=lambda method: known[method]) if known else None


def _mean(figures: Mapping[str, float], name: str) -> str:
    mean = figures.get(f"{name}.mean")
    if mean is None:
        return DASH
    std, seeds = figures.get(f"{name}.std"), figures.get(f"{name}.seeds", 1)
    spread = f" ± {std:.3f}" if std is not None and seeds > 1 else ""
    low, high = (figures.get(f"{name}.wilson95_{end}") for end in ("low", "high"))
    span = f" ({low:.3f} .. {high:.3f})" if low is not None and high is not None else ""
    return f"{mean:.3f}{spread}{span}"


# -- the bridge against each other method ---------------------------------------------------------


def _compared(
    record: Record, direction: str, tasks: Sequence[str]
) -> Iterator[tuple[str, str, Record]]:
    """(task, method, comparison) of every baseline; controls are no rivals."""
    for entry in record.get("comparisons", []):
        known = entry["task"] in tasks and entry["direction"] == direction
        about = record["methods"].get(entry["second"], {})
        if known and about.get("kind") == "baseline":
            yield entry["task"], entry["second"], entry


def _differences(record: Record, direction: str, tasks: Sequence[str]) -> str:
    by_method: dict[str, dict[str, Record]] = {}
    for task, method, entry in _compared(record, direction, tasks):
        by_method.setdefault(method, {})[task] = entry
    if not by_method:
        return ""
    rows = [
        [
            record["methods"][method]["title"],
            *(_difference(entries.get(task)) for task in tasks),
        ]
        for method, entries in by_method.items()
    ]
    return "\n\n".join(
        [
            "Bridge minus each baseline on the same rows: mean difference, its 95 % interval "
            "(paired bootstrap over rows), and the exact McNemar p of one run of each, that which "
            "did best on held-out training rows. "
            "**Bold: the baseline wins** (interval below zero); *italics: not told apart* (the "
            "interval holds zero, or p is 0.05 or more).",
            table(["baseline", *map(title, tasks)], rows),
        ]
    )


def _difference(entry: Record | None) -> str:
    if entry is None:
        return DASH
    text = f"{entry['difference']:+.3f} ({entry['low95']:+.3f} .. {entry['high95']:+.3f})"
    mcnemar = entry.get("mcnemar")
    if mcnemar:
        p = mcnemar["p_value"]
        text += f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    return {"bridge": text, "baseline": f"**{text}**", "": f"*{text}*"}[outcome(entry)]


def _verdict(record: Record, direction: str, tasks: Sequence[str]) -> str:
    """One line a task: which baselines win, which cannot be told apart."""
    lines = []
    for task in tasks:
        outcomes: dict[str, list[str]] = {"baseline": [], "": [], "bridge": []}
        for name, method, entry in _compared(record, direction, tasks):
            if name == task:
                outcomes[outcome(entry)].append(record["methods"][method]["title"])
        if not any(outcomes.values()):
            continue
        words = []
        if outcomes["baseline"]:
            words.append(f"beaten by {'; '.join(outcomes['baseline'])}.")
        if outcomes[""]:
            words.append(f"not told apart from {'; '.join(outcomes[''])}.")
        words.append(
            f"above {len(outcomes['bridge'])} of {sum(map(len, outcomes.values()))} baselines "
            f"measured there{_unmeasured(record, direction, task)}."
            f"{_untested(record, direction, task, outcomes)}"
        )
        lines.append(f"- {title(task)}: the bridge is {' It is '.join(words)}")
    return "\n".join(lines)


def _unmeasured(record: Record, direction: str, task: str) -> str:
    """Baselines that have a figure somewhere, but none here: they might win."""
    absent = [
        about["title"]
        for method, about in record["methods"].items()
        if about["kind"] == "baseline"
        and f"{task}.{direction}.{method}.mean" not in record["figures"]
    ]
    return f" (not measured there: {'; '.join(absent)})" if absent else ""


def _untested(
    record: Record, direction: str, task: str, outcomes: Mapping[str, Sequence[str]]
) -> str:
    """Baselines with a figure here but no paired test: nothing is claimed about them."""
    tested = {name for names in outcomes.values() for name in names}
    absent = [
        about["title"]
        for method, about in record["methods"].items()
        if about["kind"] == "baseline"
        and f"{task}.{direction}.{method}.mean" in record["figures"]
        and about["title"] not in tested
    ]
    return f" No paired test: {'; '.join(absent)}." if absent else ""


# -- the rest -------------------------------------------------------------------------------------


def _shipped(record: Record) -> str:
    rows = [
        [
            f"`{entry['bridge']}`",
            str(entry.get("seed", DASH)),
            figure(entry.get("held_out_accuracy")),
            figure(entry.get("accuracy")),
            f"`{entry['weights_sha256'][:12]}…`",
        ]
        for entry in record.get("shipped", {}).values()
    ]
    if not rows:
        return ""
    header = ["bridge", "seed", "held-out training rows", "test rows", "weights sha256"]
    return "\n\n".join(
        [
            "### Bridges that ship",
            "The seed that did best on held-out training rows; its test figure is among those of "
            "this chapter (a universal bridge: the mean of its tasks; a passkey: per digit).",
            table(header, rows),
        ]
    )


def _choices(record: Record) -> str:
    """What the sweeps on held-out training rows chose for the bridges that are scored."""
    choices = record.get("choices", [])
    changes = {
        (c["task"], c["direction"]): c.get("changes", {})
        for c in choices
        if c.get("job", "").startswith("sweep.")
    }
    rows = []
    for choice in choices:
        if choice.get("job", "").startswith("bridge.") and "layer" in choice:
            mine = changes.get((choice["task"], choice["direction"]), {})
            changed = ", ".join(f"{key} {value:g}" for key, value in mine.items())
            won = changed if choice.get("winner") == "changed" and changed else "nothing changed"
            if own := choice.get("changes"):  # for every bridge, without a sweep of its own
                won = ", ".join(f"{key} {value:g}" for key, value in own.items())
            rows.append([title(choice["task"]), choice["direction"], str(choice["layer"]), won])
    if not rows:
        return ""
    header = ["task", "direction", "layer", "against the base recipe"]
    return "\n\n".join(["### What the scored bridges read", table(header, rows)])


def _missed(record: Record) -> str:
    by_reason: dict[str, list[str]] = {}
    for entry in record.get("missed", []):
        by_reason.setdefault(entry["why"], []).append(entry["job"])
    if not by_reason:
        return ""
    lines = [f"- {why}: {', '.join(_by_kind(jobs))}" for why, jobs in by_reason.items()]
    return "\n\n".join(["### Not measured, and why", "\n".join(lines)])


def _by_kind(jobs: Sequence[str]) -> list[str]:
    """Jobs of one kind together: ``relay (sst2.forward, sst2.reverse)``."""
    kinds: dict[str, list[str]] = {}
    for job in jobs:
        kind, _, rest = job.partition(".")
        kinds.setdefault(kind, []).append(rest)
    shown: list[str] = []
    for kind, rests in kinds.items():
        named = [name for name in rests if name]
        shown += [kind] if len(named) < len(rests) else []
        shown += [f"{kind} ({', '.join(named)})"] if named else []
    return shown
