"""From the jobs' results to bench/results/accuracy-small.json (docs/accuracy-record.md)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agentwire.bridge.card import read_card
from agentwire.config import Config
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.holdout import held_out_split
from agentwire.task.metrics import mcnemar, paired_bootstrap, wilson_interval
from agentwire.task.rows import rows_sha256
from lab.figures import study_figures
from lab.files import Folder
from lab.jobs import DIRECTIONS, PASSKEYS, TASKS, Job, every_job
from lab.methods import METHODS
from lab.world import HELD_OUT, PAIR, TEST_SPLITS

Key = tuple[str, str, str]
"""Task, direction, method."""
Run = dict[str, Any]
Right = npt.NDArray[np.bool_]


class Results:
    """What the jobs of one folder found."""

    def __init__(self, folder: Folder, jobs: Sequence[Job]) -> None:
        self.folder = folder
        self.found = {job.name: folder.result(job.name) for job in jobs}
        self.runs: dict[Key, list[Run]] = defaultdict(list)
        for result in self.done():
            for run in result.get("runs", []):
                if "accuracy" in run:
                    self.runs[run["task"], run["direction"], run["method"]].append(run)
        for runs in self.runs.values():
            runs.sort(key=lambda run: run["seed"])
        self._labels: dict[str, npt.NDArray[np.int64]] = {}

    def done(self) -> Iterable[dict[str, Any]]:
        """Results of jobs that ended well."""
        return (r for r in self.found.values() if r is not None and r["status"] == "ok")

    def missed(self) -> list[dict[str, str]]:
        """Jobs without a result, and why."""
        found = []
        for name, result in self.found.items():
            if result is None:
                found.append({"job": name, "why": "not run"})
            elif result["status"] != "ok":
                found.append({"job": name, "why": str(result.get("error", ""))[:200]})
        return found

    def predicted(self, run: Run) -> npt.NDArray[np.uint8]:
        """The predicted classes of a run."""
        return self.folder.predictions(run["job"])[prediction_key(run)]

    def right(self, run: Run) -> Right:
        """Which test rows a run got right.

        Raises:
            ValueError: the predictions are not those that the run counted.
        """
        labels = self.labels(run["task"])
        right: Right = self.predicted(run) == labels
        if int(right.sum()) != run["correct"] or len(labels) != run["n"]:
            raise ValueError(f"{run['job']}: predictions of {run['method']} do not fit its figures")
        return right

    def labels(self, task: str) -> npt.NDArray[np.int64]:
        """Class ids of the test rows."""
        if task not in self._labels:
            rows = test_rows(task).rows
            self._labels[task] = np.array([row.label for row in rows])
        return self._labels[task]


def prediction_key(run: Run) -> str:
    """Under which name a job keeps a run's predictions; a universal bridge answers many tasks."""
    task = f"{run['task']}." if run["method"] == "universal" else ""
    return f"{run['method']}.{task}seed{run['seed']}"


def test_rows(task: str) -> Dataset:
    """The rows that are scored."""
    split = TEST_SPLITS.get(task, "test")
    return load_rows(task, split, config=Config.from_env(), allow_download=False)


def build(folder: Folder, bridges: Path | None, hardware: str, command: str) -> dict[str, Any]:
    """The whole record; keys that could not be measured are absent."""
    results = Results(folder, every_job())
    comparisons = list(compare(results))
    studies = collect_studies(results)
    for name in ("universal", "searched"):
        if name in studies:
            compared = minus_bridge(results, name, studies[name])
            studies[f"{name}_minus_bridge"] = list(compared)
    figures = main_figures(results.runs) | gaps(results.runs)
    for one in comparisons:
        name = f"{one['task']}.{one['direction']}.bridge_minus_{one['second']}"
        figures |= {
            f"{name}.difference": one["difference"],
            f"{name}.low95": one["low95"],
            f"{name}.high95": one["high95"],
            f"{name}.mcnemar_p": one["mcnemar"]["p_value"],
        }
    figures |= study_figures(studies)
    every = [r for r in results.found.values() if r is not None]
    dates = sorted(run["date"] for runs in results.runs.values() for run in runs)
    return {
        "kind": "accuracy",
        "started": dates[0] if dates else "",
        "command": command,
        "hardware": hardware,
        "versions": every[0]["versions"] if every else {},
        "tasks": {task: describe_task(task) for task in tasks_of(results.runs)},
        "directions": {
            "forward": {"sender": PAIR[0], "receiver": PAIR[1]},
            "reverse": {"sender": PAIR[1], "receiver": PAIR[0]},
        },
        "methods": {name: about for name, about in METHODS.items()
                    if any(key[2] == name for key in results.runs)},
        "figures": {name: round(value, 6) for name, value in sorted(figures.items())},
        "runs": [run for key in sorted(results.runs) for run in results.runs[key]],
        "comparisons": comparisons,
        "choices": collect_choices(results),
        "studies": studies,
        "shipped": shipped(bridges, results, studies) if bridges else {},
        "missed": results.missed(),
    }  # fmt: skip


def tasks_of(runs: Mapping[Key, Sequence[Run]]) -> list[str]:
    """Tasks that were scored: the main four first."""
    found = {task for task, _, _ in runs}
    return [t for t in TASKS if t in found] + sorted(found - set(TASKS))


def describe_task(task: str) -> dict[str, Any]:
    """What a reader must know of a task's rows."""
    test = test_rows(task)
    train = load_rows(task, "train", config=Config.from_env(), allow_download=False)
    counts = np.bincount([row.label for row in test.rows])
    kept, held_out = held_out_split(train, min(HELD_OUT, len(train) // 8), 0)
    return {
        "split": test.split,
        "rows": len(test),
        "rows_sha256": rows_sha256(test.rows),
        "classes": len(load_definition(task).labels),
        "majority": float(counts.max() / counts.sum()),
        "train_split_rows": len(train),
        "train_rows": len(kept),
        "held_out_rows": len(held_out),
    }


def main_figures(runs: Mapping[Key, Sequence[Run]]) -> dict[str, float]:
    """Mean, spread and interval of every method."""
    figures: dict[str, float] = {}
    for (task, direction, method), mine in runs.items():
        name = f"{task}.{direction}.{method}"
        accuracies = [run["accuracy"] for run in mine]
        mean, n = statistics.fmean(accuracies), mine[0]["n"]
        low, high = wilson_interval(round(mean * n), n)
        figures |= {
            f"{name}.mean": mean,
            f"{name}.std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            f"{name}.min": min(accuracies),
            f"{name}.max": max(accuracies),
            f"{name}.seeds": len(accuracies),
            f"{name}.n": n,
            f"{name}.wilson95_low": low,
            f"{name}.wilson95_high": high,
        }
        figures |= {f"{name}.seed{run['seed']}": run["accuracy"] for run in mine}
        held = [run["held_out_accuracy"] for run in mine if "held_out_accuracy" in run]
        if held:
            figures[f"{name}.held_out_mean"] = statistics.fmean(held)
    return figures


def gaps(runs: Mapping[Key, Sequence[Run]]) -> dict[str, float]:
    """Forward minus reverse, for the bridge."""
    found = {}
    for task in TASKS:
        both = [runs.get((task, direction, "bridge")) for direction in DIRECTIONS]
        if both[0] and both[1]:
            means = [statistics.fmean(run["accuracy"] for run in mine) for mine in both if mine]
            found[f"{task}.gap.bridge.difference"] = means[0] - means[1]
    return found


def compare(results: Results) -> Iterable[dict[str, Any]]:
    """The bridge against every other method on the same rows."""
    for (task, direction, method), theirs in sorted(results.runs.items()):
        ours = results.runs.get((task, direction, "bridge"))
        if method == "bridge" or not ours:
            continue
        yield {"task": task, "direction": direction, "first": "bridge", "second": method,
               **paired_difference(results, ours, theirs)}  # fmt: skip


def paired_difference(
    results: Results, ours: Sequence[Run], theirs: Sequence[Run]
) -> dict[str, Any]:
    """Bootstrap of the seeds' means over rows, and McNemar's test of the best run of each."""
    first = np.mean([results.right(run) for run in ours], axis=0)
    second = np.mean([results.right(run) for run in theirs], axis=0)
    difference = paired_bootstrap(first, second)
    test = mcnemar(results.right(best(ours)).tolist(), results.right(best(theirs)).tolist())
    return {
        "difference": difference.difference,
        "low95": difference.low,
        "high95": difference.high,
        "mcnemar": {"only_first": test.only_first, "only_second": test.only_second,
                    "p_value": test.p_value},
    }  # fmt: skip


def best(runs: Sequence[Run]) -> Run:
    """The run that did best on held-out training rows; the first where none was held out."""
    return max(runs, key=lambda run: (run.get("held_out_accuracy", 0.0), -run["seed"]))


def collect_choices(results: Results) -> list[dict[str, Any]]:
    """What was tried on held-out training rows, job by job, and what it chose."""
    return [
        {"job": result["job"], "task": result["task"], "direction": result["direction"],
         **{key: result[key] for key in ("layer", "changes", "winner") if key in result},
         "tried": [{k: v for k, v in member.items() if k != "curve"}
                   for member in result["members"]]}
        for result in results.done()
        if "members" in result
    ]  # fmt: skip


def collect_studies(results: Results) -> dict[str, list[Run]]:
    """Runs of studies, by study."""
    found: dict[str, list[Run]] = defaultdict(list)
    for result in results.done():
        for name, runs in result.get("studies", {}).items():
            found[name] += [{k: v for k, v in run.items() if k != "curve"} for run in runs]
    for result in results.done():
        if result["kind"] == "sweep":
            # One setting at a time away from the base: a study of layers and of sensitivity, too.
            for member in result["members"]:
                run = {"task": result["task"], "direction": result["direction"], **member}
                run.pop("curve", None)
                if member["changes"]:
                    found["sensitivity"].append(run)
                else:  # on all training rows, so without ``train_rows``
                    found["layers"].append(run)
    return {name: runs for name, runs in found.items() if runs}


def minus_bridge(results: Results, name: str, runs: Sequence[Run]) -> Iterable[dict[str, Any]]:
    """A study's bridges against the tasks' own of the main table, on the same rows."""
    for task, direction in dict.fromkeys((run["task"], run["direction"]) for run in runs):
        ours = [run for run in runs if (run["task"], run["direction"]) == (task, direction)]
        theirs = results.runs.get((task, direction, "bridge"))
        if theirs:
            yield {"task": task, "direction": direction, "first": name, "second": "bridge",
                   **paired_difference(results, ours, theirs)}  # fmt: skip


def shipped(
    bridges: Path, results: Results, studies: Mapping[str, Sequence[Run]]
) -> dict[str, dict[str, Any]]:
    """The bridges that ship, with the figures of the runs that they are from.

    A universal bridge's accuracy is the mean over its tasks, a passkey bridge's that of a digit.
    """
    found = {}
    for (task, direction, method), runs in sorted(results.runs.items()):
        if method == "bridge":
            figures = [run | {"figure": run["accuracy"]} for run in runs]
            found[f"{task}.{direction}"] = _ships(bridges, task, direction, figures)
    seen = [run for run in studies.get("universal", []) if run["seen"]]
    studied = {"universal": [run | {"figure": _mean_of(seen, run["seed"])} for run in seen]}
    for run in studies.get("passkey", []):
        m = run["soft_tokens"]
        name = "passkey" if m == PASSKEYS[0][0] else f"passkey--m{m}"  # the scenario's own M first
        studied.setdefault(name, []).append(run | {"figure": run["digit_accuracy"]})
    for study, figures in studied.items():
        for direction in DIRECTIONS:
            mine = [run for run in figures if run["direction"] == direction]
            found[f"{study}.{direction}"] = _ships(bridges, study, direction, mine)
    return {name: entry for name, entry in found.items() if entry}


def _mean_of(runs: Sequence[Run], seed: int) -> float:
    return statistics.fmean(run["accuracy"] for run in runs if run["seed"] == seed)


def _ships(bridges: Path, name: str, direction: str, runs: Sequence[Run]) -> dict[str, Any] | None:
    """The entry of one bridge; None: it does not ship, or is of no run here."""
    sender, receiver = PAIR if direction == "forward" else PAIR[::-1]
    folder = bridges / f"{sender}--{receiver}--{name}"
    if not folder.is_dir():
        return None
    card = read_card(folder)
    seed, step = card.training.recipe["seed"], card.training.step
    run = next((r for r in runs if (r["seed"], r["step"]) == (seed, step)), None)
    return run and {
        "bridge": card.name, "weights_sha256": card.weights_sha256, "seed": seed,
        "held_out_accuracy": card.training.held_out_accuracy, "accuracy": run["figure"],
    }  # fmt: skip


def save_predictions(folder: Folder, file: Path) -> None:
    """Every run's predicted classes in one file: ``<task>.<direction>.<method>.seed<k>``."""
    results = Results(folder, every_job())
    scored = [run for _, runs in sorted(results.runs.items()) for run in runs]
    studied = [
        run
        for runs in collect_studies(results).values()
        for run in runs
        if "method" in run and prediction_key(run) in folder.predictions(run["job"])
    ]
    arrays = {
        f"{run['task']}.{run['direction']}.{run['method']}.seed{run['seed']}": results.predicted(
            run
        )
        for run in [*scored, *studied]
    }
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
