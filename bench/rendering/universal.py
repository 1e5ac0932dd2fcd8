"""One bridge for all tasks: against the bridge of each task, and on tasks that it never saw."""

from __future__ import annotations

from collections.abc import Sequence

from rendering.compared import paired, single, title
from rendering.markdown import Record, table
from rendering.sample import DASH, Sample, listed, minus, sample, shown


def section(record: Record, runs: Sequence[Record]) -> str:
    """Two tables, and a sentence for each."""
    parts = [
        "### One universal bridge for four tasks, and for tasks that it never saw",
        "One bridge, trained on the four tasks at once; the question is the receiver's prompt "
        "alone.",
        _seen(record, [run for run in runs if run.get("seen", True)]),
        _unseen([run for run in runs if not run.get("seen", True)]),
    ]
    return "\n\n".join(part for part in parts if part)


def _by_task(runs: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for run in runs:
        found.setdefault(run["task"], []).append(run)
    return found


# -- tasks that it was trained on -----------------------------------------------------------------


def _seen(record: Record, runs: Sequence[Record]) -> str:
    rows, said = [], []
    for task, mine in _by_task(runs).items():
        direction = mine[0]["direction"]
        one, own = sample(mine), single(record, task, direction)
        same_rows = paired(record, task, direction, "universal")
        if same_rows is not None:
            value, low, high = (same_rows[key] for key in ("difference", "low95", "high95"))
            text, sign = f"{value:+.3f} ({low:+.3f} .. {high:+.3f})", (low > 0) - (high < 0)
        elif one is not None and own is not None:
            difference = minus(one, own)
            value, text, sign = difference.value, str(difference), difference.sign
        else:
            value, text, sign = None, DASH, None
        rows.append([title(task), shown(one), shown(own), text])
        said.append((title(task), value, sign))
    if not rows:
        return ""
    header = ["task", "universal bridge", "bridge of that task", "difference (95 %)"]
    return "\n\n".join([table(header, rows), _seen_verdict(said)])


def _seen_verdict(said: Sequence[tuple[str, float | None, int | None]]) -> str:
    known = [(task, value, sign) for task, value, sign in said if value is not None]
    by_sign = {
        sign: [f"{task} ({value:+.3f})" for task, value, found in known if found == sign]
        for sign in (-1, 0, 1)
    }
    words = []
    if by_sign[-1]:
        words.append(f"**below the bridge of the task** on {listed(by_sign[-1])}")
    if by_sign[0]:
        words.append(f"not told apart from the bridge of the task on {listed(by_sign[0])}")
    if by_sign[1]:
        words.append(f"above the bridge of the task on {listed(by_sign[1])}")
    return f"The universal bridge is {'; '.join(words)}." if words else ""


# -- tasks that it never saw ----------------------------------------------------------------------


def _unseen(runs: Sequence[Record]) -> str:
    rows, said = [], []
    for task, mine in _by_task(runs).items():
        one = sample(mine)
        if one is None:
            continue
        direct = sample(mine[:1], "receiver_direct", one.n)
        chance = sample(mine[:1], "majority", one.n)
        held = sample([run for run in mine if "payload_probe" in run][:1], "payload_probe", one.n)
        rows.append(
            [title(task), shown(one), *(shown(x and x.mean) for x in (chance, direct, held))]
        )
        said.append(_unseen_verdict(title(task), one, chance, direct, held))
    if not rows:
        return ""
    header = [
        "task (**never seen**)",
        "universal bridge",
        "largest class",
        "receiver reads the text, zero-shot",
        "probe on the payloads",
    ]
    about = (
        "Tasks that it never saw. The last column was fitted on the task's own training rows: it "
        "is what the soft tokens hold of the task, whether or not the receiver can say it. "
        "*Emotion as sentiment* asks SST-2's question about the rows of emotion: joy and love "
        "are positive, sadness, anger and fear negative, and surprise is left out."
    )
    return "\n\n".join([about, table(header, rows), "\n".join(f"- {line}" for line in said)])


def _unseen_verdict(
    task: str, one: Sample, chance: Sample | None, direct: Sample | None, held: Sample | None
) -> str:
    words = []
    if chance is not None:
        words.append(_words(one, chance, "always saying the largest class"))
    if direct is not None:
        words.append(_words(one, direct, "the receiver that reads the text itself"))
    text = f"{task}: the universal bridge is {'; '.join(words) or shown(one)}."
    if held is not None and minus(held, one).sign > 0:
        text += (
            f" Its payloads hold more than the receiver says: a probe on them reaches "
            f"{held.mean:.3f}."
        )
    return text


def _words(first: Sample, second: Sample, name: str) -> str:
    difference = minus(first, second)
    if not difference.sign:
        return f"not told apart from {name}"
    return f"{'above' if difference.sign > 0 else 'below'} {name} by {abs(difference.value):.3f}"
