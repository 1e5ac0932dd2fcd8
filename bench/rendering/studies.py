"""Studies of the accuracy record, each with what its figures say: the words are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from rendering import papers, searches, soft_tokens, universal
from rendering.compared import title
from rendering.markdown import Record, table
from rendering.sample import DASH, Sample, listed, minus, sample, shown

LAYERS_PICTURE = "layers-sst2"


def sections(record: Record) -> Iterator[str]:
    """A section for each study that the record has, with what it says."""
    found = record.get("studies", {})
    for name, render in STUDIES.items():
        if found.get(name) or (name == "searched" and searches.made(record)):
            yield render(record, found.get(name, []))


def draw(record: Record, folder: Path) -> list[Path]:
    """The studies' pictures."""
    return [*soft_tokens.draw(record, folder), *_draw_layers(record, folder)]


def _pairs(runs: Sequence[Record]) -> list[tuple[str, str]]:
    """(task, direction), in the order of the runs."""
    return list(dict.fromkeys((run["task"], run["direction"]) for run in runs))


def _of(runs: Sequence[Record], pair: tuple[str, str]) -> list[Record]:
    return [run for run in runs if (run["task"], run["direction"]) == pair]


def _held_out_rows(record: Record, task: str) -> int:
    rows = record["tasks"].get(task, {}).get("held_out_rows", 0)
    return int(rows)


# -- layers ---------------------------------------------------------------------------------------


def _by_rows(runs: Sequence[Record]) -> dict[tuple[str, int], list[Record]]:
    """Runs by direction and number of training rows (0: all): only those compare."""
    found: dict[tuple[str, int], list[Record]] = {}
    for run in sorted(runs, key=lambda run: run["layer"]):
        found.setdefault((run["direction"], run.get("train_rows", 0)), []).append(run)
    return found


def _layers(record: Record, runs: Sequence[Record]) -> str:
    parts = ["### After which layer to read (SST-2, held-out training rows)"]
    for (direction, count), mine in _by_rows(runs).items():
        rows = [
            [
                str(run["layer"]),
                shown(run.get("held_out_accuracy")),
                shown(run.get("probe_mean_held_out")),
            ]
            for run in mine
        ]
        trained = f"{count:,} training rows" if count else "all training rows"
        parts += [
            f"{direction.capitalize()}, {trained}:",
            table(["layer", "bridge", "mean probe"], rows),
            _layer_verdict(record, mine),
        ]
    if any(count for _, count in _by_rows(runs)):
        parts.append(f"![Accuracy by layer](figures/{LAYERS_PICTURE}.svg)")
    theirs = ", ".join(f"layer {layer}: {value:.3f}" for layer, value in papers.LAYERS.items())
    parts.append(f"Telepathy reports for Llama 3.1 8B, M = 32, 200 test rows (theirs): {theirs}.")
    return "\n\n".join(part for part in parts if part)


def _layer_verdict(record: Record, runs: Sequence[Record]) -> str:
    figures = {
        run["layer"]: one
        for run in runs
        if (one := sample([run], "held_out_accuracy", _held_out_rows(record, run["task"])))
    }
    if len(figures) < 2:
        return ""
    best = max(figures, key=lambda layer: figures[layer].mean)
    worse = [n for n in figures if minus(figures[best], figures[n]).sign]
    alike = [str(n) for n in figures if n != best and n not in worse]
    text = f"Best after layer {best}"
    text += f", not told apart from {listed(alike)}" if alike else ""
    last = max(figures)
    if last in worse:
        text += f"; the deepest one that was read, {last}, is worse by "
        text += f"{figures[best].mean - figures[last].mean:.3f}"
    return text + "."


def _draw_layers(record: Record, folder: Path) -> list[Path]:
    from rendering.pictures import Line, draw_lines

    lines = []
    for (direction, count), mine in _by_rows(record.get("studies", {}).get("layers", [])).items():
        if not count:
            continue
        deepest = max(run["layer"] for run in mine)
        for key, name in (("held_out_accuracy", "bridge"), ("probe_mean_held_out", "mean probe")):
            points = [
                (run["layer"] / deepest, one.mean, 1.96 * one.variance**0.5)
                for run in mine
                if (one := sample([run], key, _held_out_rows(record, run["task"])))
            ]
            if points:
                sender = record["directions"][direction]["sender"]
                lines.append(Line(f"{name} on {sender} (held-out rows)", points))
    if not lines:
        return []
    theirs = [(layer / 32, value, 0.0) for layer, value in papers.LAYERS.items()]
    lines.append(Line("Telepathy reports (theirs: 8B, 200 test rows)", theirs, theirs=True))
    return draw_lines(
        lines,
        folder / LAYERS_PICTURE,
        title="SST-2: accuracy by the sender's layer",
        x="layer / deepest layer",
    )


# -- sensitivity and ablation: on held-out training rows ------------------------------------------


INTERVALS = (
    "All were scored on the same held-out rows, but the intervals take them for independent "
    "samples, so they are on the wide side. A setting without `±` has one seed, and its interval "
    "knows nothing of seeds."
)


def _changes(run: Record) -> str:
    changes = run.get("changes") or {}
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in changes.items()
    )


def _against(record: Record, head: str, runs: Sequence[Record], base: Base) -> str:
    """A table a pair: each variant, and its difference to the base where there is one."""
    parts = [head, INTERVALS]
    for task, direction in _pairs(runs):
        n = _held_out_rows(record, task)
        mine = _of(runs, (task, direction))
        named = _by_name(mine)
        zero = base(record, mine)
        reference = sample(zero, "held_out_accuracy", n)
        rows, lines = [], []
        for name, same in named.items():
            one = sample(same, "held_out_accuracy", n)
            difference = None
            if one is not None and reference is not None and not _same(same, zero):
                difference = minus(one, reference)
                if difference.sign:
                    lines.append(f"{name} ({difference.value:+.3f})")
            loss = sample(same, "loss")
            failed = next((run["failed"] for run in same if run.get("failed")), None)
            rows.append(
                [
                    name,
                    shown(one) if one is not None or not failed else f"failed: {failed}",
                    DASH if loss is None else f"{loss.mean:.3f}",
                    DASH if difference is None else str(difference),
                ]
            )
        header = ["what changes", "accuracy", "loss", "against the base (95 %)"]
        parts += [f"{title(task)}, {direction}:", table(header, rows)]
        if reference is not None:
            said = f"Told apart from the base: {', '.join(lines)}." if lines else (
                "None of them can be told apart from the base."
            )  # fmt: skip
            at_chance = _at_chance(record, task, named, n)
            parts.append(said + (f" At chance: {', '.join(at_chance)}." if at_chance else ""))
    return "\n\n".join(parts)


Base = Callable[[Record, Sequence[Record]], list[Record]]
"""(record, runs of one pair) -> the runs that the others are compared with."""


def _same(runs: Sequence[Record], others: Sequence[Record]) -> bool:
    return any(run is other for run in runs for other in others)


def _by_name(runs: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for run in runs:
        found.setdefault(_changes(run) if _is_setting(run) else str(run["name"]), []).append(run)
    return found


def _is_setting(run: Record) -> bool:
    """Whether its name says less than its changes do: ``learning_rate=0.001``, ``learning_rate``"""
    changes = run.get("changes") or {}
    return bool(changes) and str(run.get("name", "")).split("=")[0] in changes


def _at_chance(
    record: Record, task: str, named: dict[str, list[Record]], n: int
) -> list[str]:  # fmt: skip
    """Variants that cannot be told apart from always saying the largest class."""
    largest = record["tasks"].get(task, {}).get("majority")
    if largest is None:
        return []
    chance = Sample((largest,), n)
    return [
        name
        for name, same in named.items()
        if (one := sample(same, "held_out_accuracy", n)) and minus(one, chance).sign <= 0
    ]


def _settings_base(record: Record, runs: Sequence[Record]) -> list[Record]:
    """The run without changes: of the study itself, or of the sweep that the settings are from."""
    own = [run for run in runs if not run.get("changes")]
    if own:
        return own
    first = runs[0]
    return [
        run
        for run in record.get("studies", {}).get("layers", [])
        if "train_rows" not in run
        and all(run.get(key) == first.get(key) for key in ("task", "direction", "layer"))
    ]


def _sensitivity(record: Record, runs: Sequence[Record]) -> str:
    return _against(
        record,
        "### Sensitivity to training settings (one at a time, held-out training rows)\n\n"
        "Every setting had as many steps as its base: a smaller batch saw fewer rows, too.",
        runs,
        _settings_base,
    )


def _whole_recipe(record: Record, runs: Sequence[Record]) -> list[Record]:
    return [run for run in runs if run.get("name") == "all on"]


def _ablation(record: Record, runs: Sequence[Record]) -> str:
    return _against(
        record,
        "### What the recipe's parts are worth (one thing off at a time, held-out training rows)",
        runs,
        _whole_recipe,
    )


def _as_it_was(record: Record, runs: Sequence[Record]) -> list[Record]:
    return [run for run in runs if run.get("name") == "first try"]


def _first_try(record: Record, runs: Sequence[Record]) -> str:
    head = (
        "### What an early recipe, which stayed at chance, lacked (held-out training rows)\n\n"
        "A throw-away experiment before this project stayed at chance in reverse (SST-2, 0.52). "
        "The base here is its recipe as far as it is known: no opening token for the sender, no "
        "standardisation, no clamp, batches of 16, no averaging, no token dropout. Every other row "
        "differs from it as it says; *shown* and *hidden* is the opening token's state."
    )
    parts = [_against(record, head, runs, _as_it_was)]
    for task, direction in _pairs(runs):
        mine = _of(runs, (task, direction))
        if not _at_chance(record, task, _by_name(mine), _held_out_rows(record, task)):
            parts.append("None of them is at chance: none of these things alone or together is "
                         "what put the early experiment there.")  # fmt: skip
        parts.append(_by_opening(mine))
    return "\n\n".join(part for part in parts if part)


def _by_opening(runs: Sequence[Record]) -> str:
    """The range of the rows' means with and without an opening token for the sender."""
    named = [same for same in _by_name(runs).values() if "held_out_accuracy" in same[0]]
    said = []
    for what, wanted in (("reads an opening token", False), ("reads none", True)):
        means = [
            fmean(run["held_out_accuracy"] for run in same)
            for same in named
            if (same[0].get("opening") == "absent") is wanted
        ]
        if means:
            said.append(f"{min(means):.3f} to {max(means):.3f} where the sender {what}")
    return f"Over the rows, accuracy is {' and '.join(said)}." if len(said) > 1 else ""


# -- passkey --------------------------------------------------------------------------------------


def _passkey(record: Record, runs: Sequence[Record]) -> str:
    rows, digits, exact = [], {}, {}
    for m in sorted({run["soft_tokens"] for run in runs}):
        same = [run for run in runs if run["soft_tokens"] == m]
        digits[m], exact[m] = sample(same, "digit_accuracy"), sample(same, "exact_match")
        rows.append(
            [
                str(m),
                shown(digits[m]),
                shown(exact[m]),
                _by_place(same),
                shown(papers.PASSKEY_DIGITS.get(m)),
            ]
        )
    header = ["M", "per digit", "all five digits", "by place, first to last"]
    counted = next((f", {run['n']:,} passkeys" for run in runs if "n" in run), "")
    return "\n\n".join(
        [
            f"### Passkey: five digits hidden in a text (chance 0.1 a digit{counted})",
            table([*header, "Telepathy reports, per digit (theirs)"], rows),
            " ".join([_against_chance(digits), _more_tokens(exact)]).strip(),
        ]
    )


def _by_place(runs: Sequence[Record]) -> str:
    places = [run["by_place"] for run in runs if run.get("by_place")]
    return ", ".join(f"{fmean(values):.3f}" for values in zip(*places, strict=True)) or DASH


def _against_chance(digits: dict[int, Sample | None]) -> str:
    known = {m: one for m, one in digits.items() if one is not None}
    above = [f"M = {m}" for m, one in known.items() if minus(one, Sample((0.1,), one.n)).sign > 0]
    rest = [f"M = {m}" for m in known if f"M = {m}" not in above]
    said = [f"Digits are above chance at {listed(above)}." if above else ""]
    said += [f"At chance: {listed(rest)}." if rest else ""]
    return " ".join(word for word in said if word)


def _more_tokens(exact: dict[int, Sample | None]) -> str:
    known = {m: one for m, one in exact.items() if one is not None}
    if len(known) < 2:
        return ""
    few, many = min(known), max(known)
    difference = minus(known[many], known[few])
    if not difference.sign:
        return f"M = {many} and M = {few} cannot be told apart in whole passkeys ({difference})."
    more = "more" if difference.sign > 0 else "fewer"
    return f"M = {many} carries {more} whole passkeys than M = {few} ({difference})."


STUDIES: dict[str, Callable[[Record, Sequence[Record]], str]] = {
    "universal": universal.section,
    "searched": searches.section,
    "soft_tokens": soft_tokens.section,
    "passkey": _passkey,
    "layers": _layers,
    "sensitivity": _sensitivity,
    "ablation": _ablation,
    "first_try": _first_try,
}
