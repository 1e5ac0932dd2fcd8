"""Several senders, one receiver: what a set of bridges knows, and what each sender is worth."""

from __future__ import annotations

from collections.abc import Sequence

from rendering.compared import title
from rendering.markdown import Record, Records, provenance, table
from rendering.sample import DASH, Sample, minus, sample, shown

SETS = {"halves": ("first_alone", "second_alone"), "whole": ("first_whole", "second_whole")}
"""The sets of bridges, and the ordinary bridges of their senders on the same texts."""


def owns(name: str, record: Record) -> bool:
    """A record of ``bench/fan_in.py``."""
    return record.get("kind") == "fan_in"


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_section(record) for record in records.values())


def worth(record: Record) -> str:
    """For the page about topologies: what two halves of a text are worth together and apart."""
    runs = [run for run in record["runs"] if run["task"] == "sst2"]
    halves = [run for run in runs if run["method"] == "halves"]
    rows = [
        ["both halves", shown(_of(halves, "all"))],
        ["the first half, and the second one of another row", shown(_of(halves, "only 1"))],
        ["the second half, and the first one of another row", shown(_of(halves, "only 2"))],
    ]
    for place, method in zip(("first", "second"), SETS["halves"], strict=True):
        alone = _of([run for run in runs if run["method"] == method], "all")
        rows.append([f"the {place} half alone, by an ordinary bridge of its sender", shown(alone)])
    data, models = record["tasks"]["sst2"], record["models"]
    told = (
        f"{data['rows']:,} rows of SST-2 {data['split']}, mean and standard deviation over seeds, "
        f"{record['hardware']}, {record['started'][:10]}, `{record['command']}`; stand-ins: "
        f"{' + '.join(models['senders'])} -> {models['receiver']}. More of it, senders that both "
        "read the whole text among it, is in [the results](results.md#"
        "several-senders-one-receiver)."
    )
    return "\n\n".join([table(["the judge is told", "accuracy"], rows), told])


def _section(record: Record) -> str:
    models = record["models"]
    facts = [
        f"- models: {' + '.join(models['senders'])} -> {models['receiver']}; **stand-ins**: "
        f"{models['stand_ins']}",
        f"- {models['soft_tokens']} soft tokens of each sender, in that order; states after layers "
        f"{', '.join(f'{layer} ({name})' for name, layer in models['layers'].items())}",
        *provenance(record),
    ]
    about = (
        "Two senders read, one receiver answers from the soft tokens of both, by bridges that were "
        "trained together (a set). *Halves*: each sender reads one half of a text's words. *Only "
        "the first*: the second sender reads another row's text, so what it says is of no use. "
        "Beside them ordinary bridges of one sender, trained on the same rows by the same recipe. "
        "The step was chosen on held-out training rows; every test row was scored once. Mean and "
        "standard deviation over seeds."
    )
    parts = [_task(record, name) for name in record["tasks"]]
    head = "## Several senders, one receiver"
    return "\n\n".join([head, "\n".join(facts), about, *parts])


def _task(record: Record, task: str) -> str:
    data = record["tasks"][task]
    names = {sender: i for i, sender in enumerate(record["models"]["senders"])}
    rows = []
    for name, kind in record["kinds"].items():
        mine = [run for run in record["runs"] if (run["task"], run["method"]) == (task, name)]
        if not mine:
            continue
        readers = [f"{('first', 'second')[names[s]]}: {piece}" for s, piece in kind["reads"]]
        rows.append(
            [
                "set of two" if len(readers) > 1 else "one bridge",
                "; ".join(readers),
                shown(_of(mine, "all")),
                shown(sample(_true(mine, "all"), "held_out_accuracy")),
                shown(_of(mine, "only 1")),
                shown(_of(mine, "only 2")),
            ]
        )
    for run in record["runs"]:
        if (run["task"], run["method"]) == (task, "receiver_direct"):
            what = ["receiver alone, untrained", run["piece"], shown(run["accuracy"])]
            rows.append([*what, DASH, DASH, DASH])
    header = [
        "bridges",
        "who reads what",
        "accuracy",
        "held out",
        "only the first",
        "only the second",
    ]
    lead = (
        f"### {title(task)}: {data['rows']:,} rows of {data['split']}, {data['classes']} classes "
        f"(largest: {data['majority']:.3f})"
    )
    said = [line for name in SETS for line in _verdict(record, task, name)]
    said += _cut_short(record, task)
    return "\n\n".join([lead, table(header, rows), "\n".join(said)]).strip()


def _verdict(record: Record, task: str, name: str) -> list[str]:
    """The set against each of its senders alone, on the same texts."""
    runs = [run for run in record["runs"] if run["task"] == task]
    both = _of([run for run in runs if run["method"] == name], "all")
    found = []
    for place, method in zip(("first", "second"), SETS[name], strict=True):
        alone = _of([run for run in runs if run["method"] == method], "all")
        if both is None or alone is None:
            continue
        difference = minus(both, alone)
        words = {1: "above", 0: "not told apart from", -1: "below"}[difference.sign]
        found.append(
            f"- {name}: both senders are {words} the {place} one's own bridge on the same texts "
            f"({difference})."
        )
    return found


def _cut_short(record: Record, task: str) -> list[str]:
    """Trainings that ended before their last step, for want of time."""
    found = {
        run["method"]: f"{run['steps_done']:,} of {run['hyperparameters']['steps']:,}"
        for run in record["runs"]
        if run["task"] == task and run.get("steps_done", 0) < _steps(run)
    }
    abouts = {name: record["kinds"][name]["about"] for name in found}
    return [f"- Ended by the clock after {steps} steps: {abouts[name]}."
            for name, steps in found.items()]  # fmt: skip


def _steps(run: Record) -> int:
    return int(run.get("hyperparameters", {}).get("steps", 0))


def _true(runs: Sequence[Record], what: str) -> list[Record]:
    return [run for run in runs if run.get("true_texts") == what]


def _of(runs: Sequence[Record], what: str) -> Sample | None:
    """Accuracies where these texts were the row's own."""
    return sample(_true(runs, what))
