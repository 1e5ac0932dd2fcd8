"""Tables and pictures of the studies in the accuracy record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from rendering.markdown import DASH, Record, fraction, table, task_title
from rendering.pictures import Line, draw_lines
from rendering.sample import Sample, difference, grouped, sample, shown

# Reported by the Telepathy paper for Llama 3.1 8B -> Mistral 7B, 200 rows, one seed.
PAPER_SOFT_TOKENS = {16: 0.215, 32: 0.135, 64: 0.075, 128: 0.010}
PAPER_LAYERS = {0: 0.665, 8: 0.880, 16: 0.920, 31: 0.945}
PAPER_DIGITS = {16: 0.234, 128: 0.098}
BUDGETS = {"papers": "the papers' budget", "converged": "longer training"}


def unseen(record: Record) -> str:
    """The universal bridge on tasks that it was not trained on."""
    runs = [run for run in record["studies"]["universal"] if not run["seen"]]
    rows = [
        [
            task_title(task),
            shown(sample(mine)),
            fraction(mine[0].get("majority")),
            fraction(mine[0].get("receiver_direct")),
            fraction(mine[0].get("payload_probe")),
        ]
        for task, mine in grouped(runs, lambda run: str(run["task"])).items()
    ]
    header = ["task (never seen)", "universal bridge", "largest class"]
    return table([*header, "receiver reads the text, zero-shot", "probe on the payloads"], rows)


def tried(record: Record, task: str, direction: str) -> str:
    """Candidates of a search for a better recipe."""
    job = f"search.{task}.{direction}"
    (search,) = (choice for choice in record["choices"] if choice["job"] == job)
    named = grouped(search["tried"], lambda run: str(run["name"]))
    rows = [
        [name, shown(sample(same, "held_out_accuracy")), f"{fmean(r['loss'] for r in same):.3f}"]
        for name, same in named.items()
    ]
    return table(["tried", "held-out accuracy", "held-out loss"], rows)


def soft_tokens(record: Record) -> str:
    runs, rows = record["studies"]["soft_tokens"], []
    for m in sorted({run["soft_tokens"] for run in runs}):
        cells = []
        for budget in BUDGETS:
            mine = _of_budget(runs, m, budget)
            loss = sample(mine, "train_loss")
            cells += [shown(sample(mine)), DASH if loss is None else f"{loss.mean:.2f}"]
        rates = {r["hyperparameters"]["learning_rate"] for r in _of_budget(runs, m, "converged")}
        cells.append(", ".join(f"{rate:g}" for rate in sorted(rates)))
        rows.append([str(m), *cells, fraction(PAPER_SOFT_TOKENS.get(m))])
    short, long = BUDGETS.values()
    header = ["M", short, "training loss", long, "training loss", "learning rate"]
    return table([*header, "Telepathy reports"], rows)


def passkey(record: Record) -> str:
    runs = record["studies"]["passkey"]
    rows = []
    for m in sorted({run["soft_tokens"] for run in runs}):
        same = [run for run in runs if run["soft_tokens"] == m]
        places = zip(*(run["by_place"] for run in same), strict=True)
        rows.append(
            [
                str(m),
                shown(sample(same, "digit_accuracy")),
                shown(sample(same, "exact_match")),
                ", ".join(f"{fmean(values):.3f}" for values in places),
                fraction(PAPER_DIGITS.get(m)),
            ]
        )
    header = ["M", "per digit", "all five digits", "by place, first to last"]
    return table([*header, "Telepathy reports, per digit"], rows)


def layers(record: Record, direction: str, train_rows: str) -> str:
    """Held-out accuracy by layer; ``train_rows`` is a number, or 0 for all rows."""
    rows = [
        [
            str(run["layer"]),
            fraction(run.get("held_out_accuracy")),
            fraction(run.get("probe_mean_held_out")),
        ]
        for run in _layer_runs(record, direction, int(train_rows))
    ]
    return table(["layer", "bridge", "mean probe"], rows)


def settings(record: Record, study: str, task: str, direction: str) -> str:
    """One setting changed at a time, and the difference to the run without changes."""
    runs = [
        run
        for run in record["studies"][study]
        if (run["task"], run["direction"]) == (task, direction)
    ]
    n = int(record["tasks"][task]["held_out_rows"])
    unchanged = _unchanged(record, study, runs)
    base = sample(unchanged, "held_out_accuracy", n)
    rows = []
    for name, same in grouped(runs, _setting).items():
        mine, loss = sample(same, "held_out_accuracy", n), sample(same, "loss")
        rows.append(
            [
                name,
                shown(mine),
                DASH if loss is None else f"{loss.mean:.3f}",
                difference(mine, base) if same != unchanged and mine and base else DASH,
            ]
        )
    return table(["what changes", "accuracy", "loss", "against the base (95 %)"], rows)


def draw(record: Record, folder: Path) -> list[Path]:
    """Both pictures, as SVG and PNG."""
    return [*_draw_soft_tokens(record, folder), *_draw_layers(record, folder)]


def _of_budget(runs: Sequence[Record], m: int, budget: str) -> list[Record]:
    return [run for run in runs if (run["soft_tokens"], run["budget"]) == (m, budget)]


def _layer_runs(record: Record, direction: str, train_rows: int) -> list[Record]:
    runs = [
        run
        for run in record["studies"]["layers"]
        if (run["direction"], run.get("train_rows", 0)) == (direction, train_rows)
    ]
    return sorted(runs, key=lambda run: int(run["layer"]))


def _setting(run: Record) -> str:
    """A run's name, or its changes where the name is short for them (``learning_rate=0.001``)."""
    changes = run.get("changes") or {}
    name = str(run["name"])
    if name.split("=")[0] not in changes:
        return name
    return ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in changes.items()
    )


def _unchanged(record: Record, study: str, runs: Sequence[Record]) -> list[Record]:
    """The runs that the others are compared with."""
    first = runs[0]
    if study != "sensitivity":
        return [run for run in runs if run["name"] == first["name"]]
    own = [run for run in runs if not run.get("changes")]
    # The reverse sweep has no base of its own: its settings started from a run of the layer sweep.
    return own or [
        run
        for run in record["studies"]["layers"]
        if "train_rows" not in run
        and all(run[key] == first[key] for key in ("task", "direction", "layer"))
    ]


def _points(samples: Sequence[tuple[float, Sample]]) -> list[tuple[float, float, float]]:
    return [(x, one.mean, one.margin) for x, one in samples]


def _draw_soft_tokens(record: Record, folder: Path) -> list[Path]:
    runs = record["studies"]["soft_tokens"]
    lines = []
    for budget, name in BUDGETS.items():
        found = [
            (m, one)
            for m in sorted({run["soft_tokens"] for run in runs})
            if (one := sample(_of_budget(runs, m, budget)))
        ]
        lines.append(Line(f"{name} (small pair, {found[0][1].n:,} rows)", _points(found)))
    reported = [(m, value, 0.0) for m, value in PAPER_SOFT_TOKENS.items()]
    lines.append(Line("Telepathy reports (8B -> 7B, 200 rows)", reported, reported=True))
    return draw_lines(
        lines,
        folder / "soft-tokens-banking77",
        title="Banking77: accuracy by soft tokens",
        x="soft tokens M",
        doubling=True,
    )


def _draw_layers(record: Record, folder: Path) -> list[Path]:
    n = int(record["tasks"]["sst2"]["held_out_rows"])
    lines = []
    for direction, ends in record["directions"].items():
        counts = {run.get("train_rows", 0) for run in record["studies"]["layers"]
                  if run["direction"] == direction}  # fmt: skip
        runs = _layer_runs(record, direction, max(counts))
        deepest = max(run["layer"] for run in runs)
        for key, name in (("held_out_accuracy", "bridge"), ("probe_mean_held_out", "mean probe")):
            found = [
                (run["layer"] / deepest, one) for run in runs if (one := sample([run], key, n))
            ]
            lines.append(Line(f"{name} on {ends['sender']} (held-out rows)", _points(found)))
    reported = [(layer / 32, value, 0.0) for layer, value in PAPER_LAYERS.items()]
    lines.append(Line("Telepathy reports (8B, 200 test rows)", reported, reported=True))
    return draw_lines(
        lines,
        folder / "layers-sst2",
        title="SST-2: accuracy by the sender's layer",
        x="layer / deepest layer",
    )


def reader(record: Record, data: str) -> str:
    """F1 and exact match of a reader bridge beside texts of the same length, by M."""

    def shown_of(key: str) -> str:
        low, high = record["figures"][f"{key}.f1_95"]
        figures = record["figures"]
        return f"{figures[f'{key}.f1']:.1f} ({low:.1f} to {high:.1f}) / {figures[f'{key}.em']:.1f}"

    rows = []
    for size in (16, 32, 64, 128):
        key = f"{data}.reader.m{size}"
        mean = (
            f"{record['figures'][f'{key}.f1.mean']:.1f} / {record['figures'][f'{key}.em.mean']:.1f}"
        )
        low, high = record["figures"][f"{key}.minus_token_budget.f1_95"]
        rest = [f"{data}.{kind}" for kind in (f"soft_alone.m{size}", f"token_budget_{size}")]
        gain = (
            f"{record['figures'][f'{key}.minus_token_budget.f1']:+.1f} ({low:+.1f} to {high:+.1f})"
        )
        rows.append([str(size), mean, *map(shown_of, rest), gain])
    rows.append(["whole text", DASH, DASH, shown_of(f"{data}.text_prompt_tuned"), DASH])
    rows.append(["no text", DASH, DASH, shown_of(f"{data}.question_only"), DASH])
    header = ["M", "reader bridge", "without additions", "text cut to M tokens"]
    return table([*header, "bridge minus cut text, F1"], rows)


TABLES: dict[str, Callable[..., str]] = {
    "unseen": unseen,
    "tried": tried,
    "soft-tokens": soft_tokens,
    "passkey": passkey,
    "layers": layers,
    "settings": settings,
    "reader": reader,
}
