"""Tables of the accuracy record (docs/accuracy-record.md): methods, differences, bridges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rendering.markdown import DASH, Record, fraction, table, task_title
from rendering.sample import Sample, sample, shown

RELAYS = ("text_relay", "lora_relay", "lora_reads_relay", "lora")
SPLIT_COLUMNS = ("train_split_rows", "held_out_rows", "train_rows")


def tasks(record: Record) -> str:
    header = ["task", "split", "test rows", "classes", "largest class"]
    rows = [
        [
            task_title(name),
            task["split"],
            f"{task['rows']:,}",
            str(task["classes"]),
            fraction(task.get("majority")),
            *(f"{task[column]:,}" for column in SPLIT_COLUMNS),
        ]
        for name, task in record["tasks"].items()
    ]
    return table([*header, "training split", "held out", "trained on"], rows)


def methods(record: Record, direction: str) -> str:
    """Mean, spread over seeds and Wilson interval; the best of bridge and baselines is bold."""
    measured = _tasks_of(record, direction)
    best = {task: _best(record, direction, task) for task in measured}
    rows = []
    for method, about in record["methods"].items():
        cells = [_mean(record, f"{task}.{direction}.{method}") for task in measured]
        if any(cell != DASH for cell in cells):
            bold = [
                f"**{cell}**" if best[task] == method else cell
                for task, cell in zip(measured, cells, strict=True)
            ]
            rows.append([about["title"], about["kind"], *bold])
    return table(["method", "kind", *map(task_title, measured)], rows)


def differences(record: Record, direction: str) -> str:
    """Bridge minus each baseline on the same rows.

    Bold: the interval is below zero. Italics: it holds zero, or McNemar's p is 0.05 or more.
    """
    measured = _tasks_of(record, direction)
    rows = []
    for method, about in record["methods"].items():
        entries = [_comparison(record, task, direction, method) for task in measured]
        if about["kind"] == "baseline" and any(entries):
            rows.append([about["title"], *map(_difference, entries)])
    return table(["baseline", *map(task_title, measured)], rows)


def relay(record: Record) -> str:
    rows = []
    for direction in record["directions"]:
        for task in record["tasks"]:
            entry = _comparison(record, task, direction, "lora_relay")
            if entry is not None:
                means = (
                    fraction(record["figures"].get(f"{task}.{direction}.{method}.mean"))
                    for method in ("bridge", *RELAYS)
                )
                rows.append([f"{task_title(task)}, {direction}", *means, _interval(entry)])
    titles = [record["methods"][method]["title"] for method in RELAYS]
    return table(["task", "bridge", *titles, f"bridge minus {titles[1]}"], rows)


def accuracies(record: Record) -> str:
    """The bridge and the best baseline of each task; bold where that baseline is better."""
    header, rows = ["task", "test rows"], []
    for ends in record["directions"].values():
        pair = " -> ".join(name.split("-")[0] for name in (ends["sender"], ends["receiver"]))
        header += [f"{pair}: bridge", "best baseline"]
    for task, about in record["tasks"].items():
        row = [task_title(task), f"{about['rows']:,}"]
        for direction in record["directions"]:
            row += _bridge_and_best(record, task, direction)
        rows.append(row)
    return table(header, rows)


def shipped(record: Record) -> str:
    rows = [
        [
            f"`{entry['bridge']}`",
            str(entry.get("seed", DASH)),
            fraction(entry.get("held_out_accuracy")),
            fraction(entry.get("accuracy")),
            f"`{entry['weights_sha256'][:12]}…`",
        ]
        for entry in record["shipped"].values()
    ]
    return table(["bridge", "seed", "held-out training rows", "test rows", "weights sha256"], rows)


def beside(record: Record, study: str) -> str:
    """A study's bridges (``universal``, ``searched``) beside the bridge of each task."""
    rows = []
    for entry in record["studies"][f"{study}_minus_bridge"]:
        task, direction = entry["task"], entry["direction"]
        own = _of(record["runs"], task, direction)
        rows.append(
            [
                task_title(task),
                shown(sample(_of(record["studies"][study], task, direction))),
                shown(sample([run for run in own if run["method"] == "bridge"])),
                _interval(entry),
            ]
        )
    return table(["task", f"{study} bridge", "bridge of that task", "difference (95 %)"], rows)


def fan_in(record: Record, task: str) -> str:
    """Sets of bridges from two senders, bridges of one sender, and the receiver alone."""
    names = {sender: i for i, sender in enumerate(record["models"]["senders"])}
    rows = []
    for name, kind in record["kinds"].items():
        readers = [f"{('first', 'second')[names[s]]}: {piece}" for s, piece in kind["reads"]]
        mine = [run for run in record["runs"] if (run["task"], run["method"]) == (task, name)]
        if mine:
            rows.append(
                [
                    "set of two" if len(readers) > 1 else "one bridge",
                    "; ".join(readers),
                    shown(_with_own_texts(mine, "all")),
                    shown(_with_own_texts(mine, "all", "held_out_accuracy")),
                    shown(_with_own_texts(mine, "only 1")),
                    shown(_with_own_texts(mine, "only 2")),
                ]
            )
    for run in record["runs"]:
        if (run["task"], run["method"]) == (task, "receiver_direct"):
            cells = [run["piece"], fraction(run["accuracy"]), DASH, DASH, DASH]
            rows.append(["receiver alone, untrained", *cells])
    header = ["bridges", "who reads what", "accuracy", "held out"]
    return table([*header, "only the first", "only the second"], rows)


# -- cells ----------------------------------------------------------------------------------------


def _tasks_of(record: Record, direction: str) -> list[str]:
    return [
        task for task in record["tasks"] if f"{task}.{direction}.bridge.mean" in record["figures"]
    ]


def _best(record: Record, direction: str, task: str, *, baselines_only: bool = False) -> str:
    """The method with the highest mean, without controls; "" if none was measured."""
    figures = record["figures"]
    wanted = ("baseline",) if baselines_only else ("baseline", "bridge")
    means = {
        method: figures[f"{task}.{direction}.{method}.mean"]
        for method, about in record["methods"].items()
        if about["kind"] in wanted and f"{task}.{direction}.{method}.mean" in figures
    }
    return max(means, key=lambda method: means[method], default="")


def _mean(record: Record, name: str) -> str:
    figures = record["figures"]
    if f"{name}.mean" not in figures:
        return DASH
    std, seeds = figures.get(f"{name}.std"), figures.get(f"{name}.seeds", 1)
    spread = f" ± {std:.3f}" if std is not None and seeds > 1 else ""
    low, high = (figures[f"{name}.wilson95_{end}"] for end in ("low", "high"))
    return f"{figures[f'{name}.mean']:.3f}{spread} ({low:.3f} .. {high:.3f})"


def _comparison(record: Record, task: str, direction: str, method: str) -> Record | None:
    for entry in record["comparisons"]:
        if (entry["task"], entry["direction"], entry["second"]) == (task, direction, method):
            return dict(entry)
    return None


def _interval(entry: Record) -> str:
    return f"{entry['difference']:+.3f} ({entry['low95']:+.3f} .. {entry['high95']:+.3f})"


def _difference(entry: Record | None) -> str:
    if entry is None:
        return DASH
    p = entry["mcnemar"]["p_value"]
    text = f"{_interval(entry)}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    if entry["high95"] < 0:
        return f"**{text}**"
    return text if entry["low95"] > 0 and p < 0.05 else f"*{text}*"


def _bridge_and_best(record: Record, task: str, direction: str) -> tuple[str, str]:
    figures = record["figures"]
    own = fraction(figures.get(f"{task}.{direction}.bridge.mean"))
    best = _best(record, direction, task, baselines_only=True)
    if not best:
        return own, DASH
    mean = figures[f"{task}.{direction}.{best}.mean"]
    text = f"{record['methods'][best]['title']} {mean:.3f}"
    entry = _comparison(record, task, direction, best)
    return own, f"**{text}**" if entry is not None and entry["high95"] < 0 else text


def _of(runs: Sequence[Record], task: str, direction: str) -> list[Record]:
    return [run for run in runs if (run["task"], run["direction"]) == (task, direction)]


def _with_own_texts(runs: Sequence[Record], which: str, key: str = "accuracy") -> Sample | None:
    """Figures of the runs in which these senders read the row's own text."""
    return sample([run for run in runs if run.get("true_texts") == which], key)


TABLES: dict[str, Callable[..., str]] = {
    "tasks": tasks,
    "methods": methods,
    "differences": differences,
    "relay": relay,
    "accuracies": accuracies,
    "shipped": shipped,
    "beside": beside,
    "fan-in": fan_in,
}
