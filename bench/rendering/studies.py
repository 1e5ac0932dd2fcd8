"""Studies of the accuracy record: soft tokens, layers, settings, passkey, universal bridge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from rendering import papers
from rendering.markdown import Record, table

DASH = "–"
CLEAR = 0.02
"""Two points: a smaller difference between two M is not called one."""


def sections(record: Record) -> Iterator[str]:
    """A section for each study that the record has, with what it says."""
    found = record.get("studies", {})
    for name, render in STUDIES.items():
        if found.get(name):
            yield render(record, found[name])


def _over_seeds(runs: Sequence[Record], key: str = "accuracy") -> str:
    values = [run[key] for run in runs if run.get(key) is not None]
    if not values:
        return DASH
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}" + (f" ({len(values)} seeds)" if spread else "")


def _mean(runs: Sequence[Record], key: str = "accuracy") -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return fmean(values) if values else None


def _fraction(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else DASH


def _values(runs: Sequence[Record], key: str) -> list[Any]:
    return sorted({run[key] for run in runs if key in run})


# -- soft tokens ----------------------------------------------------------------------------------


def _soft_tokens(record: Record, runs: Sequence[Record]) -> str:
    def of(m: int, budget: str) -> list[Record]:
        return [r for r in runs if r.get("soft_tokens") == m and r.get("budget") == budget]

    counts = _values(runs, "soft_tokens")
    rows = [
        [
            str(m),
            _over_seeds(of(m, "papers")),
            _over_seeds(of(m, "converged")),
            _rates(of(m, "converged")),
            _fraction(papers.SOFT_TOKENS.get(m)),
        ]
        for m in counts
    ]
    header = ["M", "the papers' budget", "longer, rate tuned for each M", "its rate"]
    return "\n\n".join(
        [
            "### How many soft tokens (Banking77, forward)",
            table([*header, "Telepathy reports (8B -> 7B, 200 rows)"], rows),
            _soft_token_verdict(
                {m: _mean(of(m, "papers")) for m in counts},
                {m: _mean(of(m, "converged")) for m in counts},
            ),
        ]
    )


def _rates(runs: Sequence[Record]) -> str:
    found = [run.get("hyperparameters", {}).get("learning_rate") for run in runs]
    return ", ".join(f"{rate:g}" for rate in dict.fromkeys(found) if rate is not None) or DASH


def _soft_token_verdict(papers_budget: dict[int, Any], converged: dict[int, Any]) -> str:
    """What the two budgets say about "fewer is better", from their ends M = 16 and the largest."""

    def drop(figures: dict[int, Any]) -> float | None:
        known = {m: a for m, a in figures.items() if a is not None and m >= 16}
        return known[min(known)] - known[max(known)] if len(known) > 1 else None

    short, long = drop(papers_budget), drop(converged)
    if short is None or long is None:
        return ""
    text = (
        f"From M = 16 to the largest M accuracy changes by {-short:+.3f} at the papers' budget and "
        f"by {-long:+.3f} after longer training. "
    )
    if short <= CLEAR:
        return text + '"Fewer is better" does not show here at either budget.'
    if long <= CLEAR:
        return text + (
            "The drop is there at the papers' budget and gone after longer training: the data "
            "support slow optimisation of larger M, not a limit of what more soft tokens can carry."
        )
    if long < short / 2:
        return text + (
            "Longer training takes away more than half of the drop: mostly slow optimisation of "
            "larger M; what is left may be either."
        )
    return text + "Most of the drop stays after longer training: budget alone does not explain it."


# -- layers, sensitivity, ablation: on held-out training rows -------------------------------------


def _layers(record: Record, runs: Sequence[Record]) -> str:
    parts = ["### After which layer to read (SST-2, held-out training rows)"]
    for direction in dict.fromkeys(run["direction"] for run in runs):
        rows = [
            [
                str(run["layer"]),
                _fraction(run.get("held_out_accuracy")),
                _fraction(run.get("probe_mean_held_out")),
            ]
            for run in sorted(runs, key=lambda run: run["layer"])
            if run["direction"] == direction
        ]
        parts += [f"{direction.capitalize()}:", table(["layer", "bridge", "mean probe"], rows)]
    theirs = ", ".join(f"layer {layer}: {value:.3f}" for layer, value in papers.LAYERS.items())
    parts.append(f"Telepathy reports for Llama 3.1 8B, M = 32, 200 test rows (theirs): {theirs}.")
    return "\n\n".join(parts)


def _changes(run: Record) -> str:
    changes = run.get("changes") or {}
    if changes:
        return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in changes.items())  # fmt: skip
    return str(run.get("name", DASH))


def _held_out_table(title: str, runs: Sequence[Record], key: str) -> str:
    rows = [
        [
            str(run.get("task", DASH)),
            str(run.get("direction", DASH)),
            _changes(run) if key == "changes" else str(run.get(key, DASH)),
            _fraction(run.get("held_out_accuracy")),
            _fraction(run.get("loss")),
        ]
        for run in runs
    ]
    header = ["task", "direction", "what changes", "accuracy", "loss"]
    return "\n\n".join([title, table(header, rows)])


def _sensitivity(record: Record, runs: Sequence[Record]) -> str:
    return _held_out_table(
        "### Sensitivity to training settings (one at a time, held-out training rows)",
        runs,
        "changes",
    )


def _ablation(record: Record, runs: Sequence[Record]) -> str:
    return _held_out_table(
        "### What the recipe's parts are worth (held-out training rows, one seed)", runs, "name"
    )


# -- passkey, universal ---------------------------------------------------------------------------


def _passkey(record: Record, runs: Sequence[Record]) -> str:
    rows = []
    for m in _values(runs, "soft_tokens"):
        same = [run for run in runs if run["soft_tokens"] == m]
        rows.append(
            [
                str(m),
                _over_seeds(same, "digit_accuracy"),
                _over_seeds(same, "exact_match"),
                _by_place(same),
                _fraction(papers.PASSKEY_DIGITS.get(m)),
            ]
        )
    header = ["M", "per digit", "all five digits", "by place, first to last"]
    return "\n\n".join(
        [
            "### Passkey: five digits hidden in a text (chance 0.1 a digit)",
            table([*header, "Telepathy reports, per digit"], rows),
        ]
    )


def _by_place(runs: Sequence[Record]) -> str:
    places = [run["by_place"] for run in runs if run.get("by_place")]
    return ", ".join(f"{fmean(values):.3f}" for values in zip(*places, strict=True)) or DASH


def _universal(record: Record, runs: Sequence[Record]) -> str:
    rows = []
    for task in dict.fromkeys(run["task"] for run in runs):
        same = [run for run in runs if run["task"] == task]
        seen = "yes" if same[0].get("seen", True) else "**never**"
        single = record["figures"].get(f"{task}.{same[0].get('direction')}.bridge.mean")
        rows.append([task, seen, _over_seeds(same), _fraction(single)])
    return "\n\n".join(
        [
            "### One universal bridge for four tasks, and for tasks that it never saw",
            "One bridge, trained on the four tasks at once; the question is the receiver's prompt "
            "alone.",
            table(["task", "seen in training", "universal bridge", "bridge of that task"], rows),
        ]
    )


STUDIES = {
    "soft_tokens": _soft_tokens,
    "layers": _layers,
    "sensitivity": _sensitivity,
    "ablation": _ablation,
    "passkey": _passkey,
    "universal": _universal,
}
