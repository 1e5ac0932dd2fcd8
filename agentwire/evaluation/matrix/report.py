"""The report of a matrix on a terminal: a table over its cells, and what was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentwire.evaluation.matrix.result import MatrixResult, SummaryRow
from agentwire.evaluation.methods import title_of
from agentwire.evaluation.report import cuts, differences, sample_note, stand_ins

NAMES = {"soft_tokens": "M"}
"""Shorter column heads of axes."""
FIGURES = {
    "all_right": ", all right",
    "mean_of_tasks": ", mean of tasks",
    "em": ", exact match",
    "f1": ", F1",
}


def print_matrix(result: MatrixResult, folder: Path, console: Console) -> None:
    console.print()
    console.print(_heading(result))
    if result.summary:
        console.print(_table(result))
        console.print(_legend(result))
    several = [
        differences(cell.comparisons, f"{cell.id}: ") for cell in result.cells if cell.comparisons
    ]
    for note in (*several, _cuts(result), _skipped(result), _recipes(result)):
        if note is not None:
            console.print(note)
    console.print()
    console.print(Text(f"written to {folder}/ (matrix.json, cells/)", style="dim"))


def _heading(result: MatrixResult) -> Text:
    done = sum(cell.status == "done" for cell in result.cells)
    text = Text.assemble((result.scenario, "bold"), f"   {done} of {len(result.cells)} cells")
    data = {
        f"{cell.dataset.name} {cell.dataset.split}, {cell.dataset.rows:,} of "
        f"{cell.dataset.rows_in_split:,} rows": cell.dataset
        for cell in result.cells
        if cell.dataset is not None
    }
    for shown, dataset in data.items():
        text.append(f"\n  {shown}", "dim")
        text.append(sample_note(dataset), "bold yellow")
    if result.interrupted:
        text.append("\n  INTERRUPTED: the figures cover the finished cells", "bold red")
    return text


def _table(result: MatrixResult) -> Table:
    axes = [name for name in result.axes if name != "seed"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in axes:
        table.add_column(NAMES.get(name, name.removeprefix("train.")), overflow="fold")
    table.add_column("method", no_wrap=True)
    for title in ("accuracy", "95% interval", "seeds", "lowest ..\nhighest"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in _ordered(result, axes):
        table.add_row(*(_value(row, name) for name in axes), *_figures(row))
    return table


def _ordered(result: MatrixResult, axes: Sequence[str]) -> list[SummaryRow]:
    """Rows by axes in the scenario's order; methods without an axis come first."""

    def place(row: SummaryRow) -> list[int]:
        values = [(result.axes[name], row.axes.get(name)) for name in axes]
        return [known.index(value) if value in known else -1 for known, value in values]

    return sorted(result.summary, key=place)


def _value(row: SummaryRow, axis: str) -> Text:
    value = row.axes.get(axis)
    return Text("-", style="dim") if value is None else Text(str(value))


def _figures(row: SummaryRow) -> list[Text]:
    name = title_of(row.method)
    name += FIGURES.get(row.figure, "")
    title = Text(name, style="bold cyan" if row.method == "bridge" else "bold")
    interval = row.wilson95 or row.bootstrap95
    if row.mean is None or interval is None:
        return [title, Text("not scored"), Text("-"), Text("-"), Text("-")]
    low, high = interval
    spread = "-" if row.std is None else f"{row.lowest:.3f} .. {row.highest:.3f}"
    return [
        title,
        Text(f"{row.mean:.3f}", style="bold"),
        Text(f"{low:.3f} .. {high:.3f}", style="dim"),
        Text(str(max(len(row.seeds), 1))),
        Text(spread, style="dim"),
    ]


def _legend(result: MatrixResult) -> Text:
    text = Text(
        "means over seeds; intervals over rows (Wilson, or bootstrap for exact match and F1); "
        "lowest and highest over seeds",
        "dim",
    )
    if note := stand_ins(result.substitutions):
        text.append(f"\n{note}", style="yellow not dim")
    return text


def _cuts(result: MatrixResult) -> Text | None:
    lines = [f"{cell.id} ({found})" for cell in result.cells if (found := cuts(cell.methods))]
    return Text(f"texts not read to their ends: {'; '.join(lines)}", "yellow") if lines else None


def _skipped(result: MatrixResult) -> Text | None:
    cells = [cell for cell in result.cells if cell.status == "skipped"]
    if not cells:
        return None
    names = ", ".join(cell.id for cell in cells)
    return Text(
        f"{len(cells)} of {len(result.cells)} cells were not measured because they have no bridge "
        f"(--train trains them): {names}",
        style="bold yellow",
    )


def _recipes(result: MatrixResult) -> Text | None:
    """Bridges whose training settings differ from the matrix."""
    lines = [
        f"{cell.id} ({', '.join(cell.bridge.recipe_differs)})"
        for cell in result.cells
        if cell.bridge and cell.bridge.recipe_differs
    ]
    if not lines:
        return None
    return Text("bridges trained with settings other than `train:`: " + "; ".join(lines), "yellow")
