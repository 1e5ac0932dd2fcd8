"""How many soft tokens: the source paper's "fewer is better", at its budget and after more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rendering import papers
from rendering.markdown import Record, table
from rendering.sample import DASH, Difference, Sample, listed, minus, sample, shown

PICTURE = "soft-tokens-banking77"
CLEAR = 0.02
"""Two points: a smaller drop is not called one, however many rows there are."""
SMALL = 16
"""The paper's sweep begins here."""
BUDGETS = {"papers": "the papers' budget", "converged": "longer, rate tuned for each M"}
Samples = Mapping[int, Sample]
"""By M."""


def section(record: Record, runs: Sequence[Record]) -> str:
    """Table, picture, and what the data say about the paper's claim."""
    counts = sorted({run["soft_tokens"] for run in runs})
    rows = [
        [
            str(m),
            *(_cells(runs, m, "papers")),
            *(_cells(runs, m, "converged")),
            _rates(_of(runs, m, "converged")),
            shown(papers.SOFT_TOKENS.get(m)),
        ]
        for m in counts
    ]
    header = [
        "M",
        BUDGETS["papers"],
        "its last training loss",
        BUDGETS["converged"],
        "its last training loss",
        "its rate",
        "Telepathy reports (theirs: 8B -> 7B, 200 rows)",
    ]
    parts = [
        "### How many soft tokens (Banking77, forward)",
        _budgets(runs),
        table(header, rows),
        f"![Accuracy by soft tokens, at both budgets](figures/{PICTURE}.svg)",
        verdict(samples(runs, "papers"), samples(runs, "converged")),
        _cut_short(runs),
    ]
    return "\n\n".join(part for part in parts if part)


def samples(runs: Sequence[Record], budget: str) -> dict[int, Sample]:
    """Test accuracies of one budget, by M."""
    found = {}
    for m in sorted({run["soft_tokens"] for run in runs}):
        one = sample(_of(runs, m, budget))
        if one is not None:
            found[m] = one
    return found


def _of(runs: Sequence[Record], m: int, budget: str) -> list[Record]:
    return [r for r in runs if r.get("soft_tokens") == m and r.get("budget") == budget]


def _cells(runs: Sequence[Record], m: int, budget: str) -> tuple[str, str]:
    mine = _of(runs, m, budget)
    loss = sample(mine, "train_loss")
    return shown(sample(mine)), DASH if loss is None else f"{loss.mean:.2f}"


def _rates(runs: Sequence[Record]) -> str:
    found = [run.get("hyperparameters", {}).get("learning_rate") for run in runs]
    return ", ".join(f"{rate:g}" for rate in dict.fromkeys(found) if rate is not None) or DASH


def _budgets(runs: Sequence[Record]) -> str:
    """What each budget was, as the runs say it."""
    said = []
    for budget, name in BUDGETS.items():
        mine = [run.get("hyperparameters", {}) for run in runs if run.get("budget") == budget]
        recipes = [recipe for recipe in mine if "steps" in recipe]
        if recipes:
            steps = sorted({recipe["steps"] for recipe in recipes})
            batches = sorted({recipe["batch_size"] for recipe in recipes})
            said.append(f"{name}: {_or(steps)} steps of {_or(batches)} rows")
    text = f"{'; '.join(said)}."
    return text[0].upper() + text[1:] if said else ""


def _or(values: Sequence[int]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _cut_short(runs: Sequence[Record]) -> str:
    """Runs that ended before their last step, for want of time."""
    cut = sorted(
        {
            (run["soft_tokens"], run["steps_done"], run["hyperparameters"]["steps"])
            for run in runs
            if run.get("steps_done", 0) < run.get("hyperparameters", {}).get("steps", 0)
        }
    )
    if not cut:
        return ""
    words = [f"M = {m} after {done:,} of {steps:,} steps" for m, done, steps in cut]
    return f"Ended early, for want of time: {'; '.join(words)}."


# -- what it says ---------------------------------------------------------------------------------


def change(figures: Samples) -> tuple[int, int, Difference] | None:
    """From M = 16 to the largest M: both, and the change; None: there are no two."""
    known = [m for m in figures if m >= SMALL]
    if len(known) < 2:
        return None
    small, large = min(known), max(known)
    return small, large, minus(figures[large], figures[small])


def verdict(short: Samples, long: Samples) -> str:
    """What the two budgets say about "fewer is better", from M = 16 and the largest M."""
    ends = [change(short), change(long)]
    if ends[0] is None or ends[1] is None:
        return ""
    (small, large, at_papers), (_, _, after) = ends[0], ends[1]
    text = (
        f"From M = {small} to M = {large} accuracy changes by {at_papers} at the papers' budget "
        f"and by {after} after longer training (95 % of rows and seeds). "
    )
    return text + _explained(at_papers, after) + _best(short, long)


def _falls(found: Difference) -> bool:
    return found.sign < 0 and found.value < -CLEAR


def _explained(at_papers: Difference, after: Difference) -> str:
    if not _falls(at_papers):
        if at_papers.sign > 0 and at_papers.value > CLEAR:
            return "At the papers' budget more soft tokens are better here, not fewer."
        if _falls(after):
            return (
                "The drop is not there at the papers' budget and appears after longer training: "
                "slow optimisation does not explain it."
            )
        return (
            '"Fewer is better" does not show here at either budget: on this pair neither slow '
            "optimisation nor a limit of what more soft tokens can carry has anything to explain."
        )
    if not _falls(after):
        return (
            "The drop is there at the papers' budget and gone after longer training: the data "
            "support slow optimisation of larger M, not a limit of what more soft tokens can carry."
        )
    if after.value > at_papers.value / 2:
        return (
            "Longer training takes away more than half of the drop: mostly slow optimisation of "
            "larger M; what is left may be either."
        )
    return "Most of the drop stays after longer training: budget alone does not explain it."


def _best(short: Samples, long: Samples) -> str:
    """Which M is best at each budget, with those that cannot be told apart from it."""
    said = []
    for figures, name in ((short, "at the papers' budget"), (long, "after longer training")):
        best = max(figures, key=lambda m: figures[m].mean)
        alike = [str(m) for m in figures if m != best and not minus(figures[best], figures[m]).sign]
        near = f" (not told apart: {listed(alike)})" if alike else ""
        said.append(f"M = {best} {name}{near}")
    return f" Best: {said[0]}; {said[1]}."


# -- the picture ----------------------------------------------------------------------------------


def draw(record: Record, folder: Path) -> list[Path]:
    """Both budgets over M, and the paper's figures as theirs; nothing without such runs."""
    from rendering.pictures import Line, draw_lines

    runs = record.get("studies", {}).get("soft_tokens", [])
    lines = [
        Line(
            f"{BUDGETS[budget]} (small pair, {next(iter(figures.values())).n:,} rows)",
            [(m, one.mean, 1.96 * one.variance**0.5) for m, one in figures.items()],
        )
        for budget in BUDGETS
        if (figures := samples(runs, budget))
    ]
    if not lines:
        return []
    theirs = Line(
        "Telepathy reports (theirs: 8B -> 7B, 200 rows)",
        [(m, value, 0.0) for m, value in papers.SOFT_TOKENS.items()],
        theirs=True,
    )
    return draw_lines(
        [*lines, theirs],
        folder / PICTURE,
        title="Banking77: accuracy by soft tokens",
        x="soft tokens M",
        doubling=True,
    )
