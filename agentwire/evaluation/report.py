"""The report of a run on a terminal: stand-ins, the table of methods, and their stages.

Everything is rendered from a ``RunResult``, so the screen agrees with result.json. The caption of
every table names the stand-ins, so that no figure is read without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agentwire.evaluation.methods import title_of
from agentwire.evaluation.result import (
    Comparison,
    DatasetRecord,
    MethodRecord,
    RunResult,
    SubstitutionRecord,
)
from agentwire.scenario.choose import Substitution

STAGE_COLOURS = {
    "tokenize": "bright_black",
    "encode": "blue",
    "bridge": "magenta",
    "generate": "red",
    "queue": "yellow",
    "wire": "cyan",
    "decode": "green",
}
"""In the order of a row's way."""
BAR_WIDTH = 48
WIDE = 94
"""Columns of the whole table; a narrower one has no rows/s and lists channels below it."""


def print_banner(
    substitutions: Sequence[Substitution | SubstitutionRecord], console: Console
) -> None:
    """Prints the notice of what stands in for what, and why, if anything does."""
    if not substitutions:
        return
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for item in substitutions:
        change = Text.assemble(
            (item.wanted, "strike"), ("  ->  ", "dim"), (item.used, "bold yellow"), "\n",
            (f"because {item.reason}", "dim"),
        )  # fmt: skip
        subject = item.subject if item.kind == "model" else "dataset"
        grid.add_row(subject, change)
    note = Text("All figures below were measured with the stand-ins.")
    notice = Panel(
        Group(grid, Text(), note),
        title="[bold]STAND-INS[/bold]",
        title_align="left",
        border_style="yellow",
        box=box.HEAVY,
        expand=False,
    )
    console.print(notice)


def print_report(result: RunResult, folder: Path, console: Console) -> None:
    console.print()
    console.print(_heading(result))
    wide = console.width >= WIDE
    console.print(_methods_table(result, wide=wide))
    console.print(_legend(result, wide=wide))
    for part in (
        differences(result.comparisons),
        _stages(result),
        _cuts(result),
        _failures(result),
    ):
        if part is not None:
            console.print()
            console.print(part)
    console.print()
    console.print(Text(f"written to {folder}/ (result.json, predictions.jsonl)", style="dim"))


def _heading(result: RunResult) -> Text:
    data = result.dataset
    text = Text.assemble(
        (result.scenario, "bold"),
        f"   {data.name} {data.split}, {data.rows:,} of {data.rows_in_split:,} rows, "
        f"batches of {result.settings.batch_size}, {result.settings.in_flight} in flight",
    )
    text.append(sample_note(data), "bold yellow")
    if result.interrupted:
        text.append("   INTERRUPTED: the figures cover the finished rows", "bold red")
    text.append("\n")
    for name, agent in result.agents.items():
        text.append(
            f"  {name}: {agent.model} on {agent.device}, process {agent.pid}\n", style="dim"
        )
    text.rstrip()
    return text


def stand_ins(substitutions: Sequence[SubstitutionRecord]) -> str:
    """The note of a table about what stands in for what; empty if nothing does."""
    pairs = ", ".join(f"{s.used} for {s.wanted}" for s in substitutions)
    return f"stand-ins: {pairs}" if pairs else ""


def sample_note(data: DatasetRecord) -> str:
    """A warning where a sample stands for the dataset, else empty."""
    if data.provenance.get("source") != "sample":
        return ""
    return f"   SAMPLE: {data.provenance.get('note')}"


def _methods_table(result: RunResult, *, wide: bool) -> RenderableType:
    note = stand_ins(result.substitutions)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=Text(note, style="yellow", justify="left") if note else None,
        caption_justify="left",
        header_style="bold",
    )
    table.add_column("method", no_wrap=True)
    answered = any(method.answers for method in result.methods.values())
    figure = "F1, exact match" if answered else "accuracy"
    for title in (f"{figure}\n95% interval", "p50 ms\na row", "p95 ms\na row"):
        table.add_column(title, justify="right", no_wrap=True)
    if wide:
        table.add_column("rows/s", justify="right", no_wrap=True)
    table.add_column("vs text\nrelay", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    if wide:
        table.add_column("channels", overflow="fold")
    relay = result.methods.get("text_relay")
    for name, method in result.methods.items():
        latency = method.latency_ms
        table.add_row(
            _title(name),
            _accuracy(method),
            _figure(latency.p50 if latency else None),
            _figure(latency.p95 if latency else None),
            *([_figure(method.rows_per_s)] if wide else []),
            _speed_up(method, relay),
            "-" if method.payload_bytes is None else f"{method.payload_bytes:,.0f}",
            *([_channels(method)] if wide else []),
        )
    return table


def differences(comparisons: Sequence[Comparison], where: str = "") -> RenderableType | None:
    """The bridge minus each other method, of answers in words; ``where`` stands before each."""
    found = [one for one in comparisons if one.figure == "f1"]
    if not found:
        return None
    grid = Table.grid(padding=(0, 2))
    for one in found:
        low, high = one.interval95
        style = "green" if low > 0 else "red" if high < 0 else "dim"
        grid.add_row(
            Text(f"{where}F1 of {title_of(one.first)} minus {title_of(one.second)}"),
            Text(f"{one.difference:+.3f}", style=f"bold {style}"),
            Text(f"{low:+.3f} .. {high:+.3f}   p {one.p_value:.2g}", style="dim"),
        )
    return grid


def _title(name: str) -> Text:
    return Text(title_of(name), style="bold cyan" if name == "bridge" else "bold")


def _legend(result: RunResult, *, wide: bool) -> RenderableType:
    """The models of each method; on a narrow terminal also the channels."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold", style="dim")
    for name, method in result.methods.items():
        text = Text(method.label)
        grid.add_row(_title(name), text if wide else Text("\n").join([text, _channels(method)]))
    return grid


def _accuracy(method: MethodRecord) -> Text:
    if method.accuracy is None or method.wilson95 is None:
        return Text("-\nnot scored" if method.n else "-\nno rows", justify="right")
    failed, answers = sum(method.errors.values()), method.answers
    low, high = answers.f1_95 if answers else method.wilson95
    rest = f"{answers.em:.3f}" if answers else f"{method.correct}/{method.n}"
    faults = ", ".join(f"{n:,} {kind}" for kind, n in answers.faults.items()) if answers else ""
    return Text.assemble(
        (f"{method.main_figure:.3f}", "bold"), f"  {rest}\n",
        (f"{low:.3f} .. {high:.3f}", "dim"),
        (f"\n{faults}" if faults else "", "yellow"),
        (f"\n{failed:,} without answer" if failed else "", "bold red"),
        justify="right",
    )  # fmt: skip


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def speed_up(method: MethodRecord, relay: MethodRecord | None) -> float | None:
    """Text relay's p50 latency divided by this method's."""
    if relay is None or relay is method or not relay.latency_ms or not method.latency_ms:
        return None
    return relay.latency_ms.p50 / max(method.latency_ms.p50, 1e-9)


def _speed_up(method: MethodRecord, relay: MethodRecord | None) -> Text:
    if relay is method and method.latency_ms:
        return Text("1.0 x", style="dim")
    factor = speed_up(method, relay)
    if factor is None:
        return Text("-")
    return Text(f"{factor:.1f} x", style="bold green" if factor > 1 else "red")


def _channels(method: MethodRecord) -> Text:
    parts = [f"{name} {count}" for name, count in method.channels if count]
    text = Text(", ".join(parts) or "-")
    if method.answers and method.answers.prompt_tokens:
        written = method.answers.completion_tokens
        text.append(f"\nread {method.answers.prompt_tokens:.0f}, wrote {written:.1f}")
    if method.reasons:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(method.reasons.items()))
        text.append(f"\n{why}", style="yellow")
    return text


def _stages(result: RunResult) -> RenderableType | None:
    rows = [(n, m) for n, m in result.methods.items() if m.stages_ms]
    if not rows:
        return None
    longest = max(sum(m.stages_ms.values()) for _, m in rows)
    table = Table(
        box=None,
        pad_edge=False,
        title="time of a row by stage (mean ms, including the wait for its batch)",
        title_justify="left",
        title_style="bold",
        show_header=False,
    )
    table.add_column(no_wrap=True)
    table.add_column()
    for name, method in rows:
        table.add_row(_title(name), _bar(method.stages_ms, longest))
    return table


def _bar(stages: dict[str, float], longest: float) -> Text:
    """A bar to scale, with the figure of each stage under it."""
    bar, legend = Text(), Text()
    order = {stage: place for place, stage in enumerate(STAGE_COLOURS)}
    total, drawn, done = sum(stages.values()), 0, 0.0
    for stage in sorted(stages, key=lambda stage: order.get(stage, len(order))):
        ms = stages[stage]
        done += ms
        end = round(BAR_WIDTH * done / longest) if longest else 0
        colour = STAGE_COLOURS.get(stage, "white")
        bar.append("█" * max(0, end - drawn), style=colour)
        drawn = max(drawn, end)
        legend.append(f"{stage} ", style=colour).append(f"{_figure(ms)}  ")
    bar.append(f" {_figure(total)} ms\n", style="bold")
    return bar + legend


def cuts(methods: Mapping[str, MethodRecord]) -> str:
    """The methods that did not read all rows to their ends, with counts; empty if all did."""
    return ", ".join(f"{title_of(n)} {m.cut:,} of {m.n:,}" for n, m in methods.items() if m.cut)


def _cuts(result: RunResult) -> RenderableType | None:
    found = cuts(result.methods)
    return Text(f"texts not read to their ends: {found}", style="bold yellow") if found else None


def _failures(result: RunResult) -> RenderableType | None:
    failed = {n: m.errors for n, m in result.methods.items() if m.errors}
    if not failed:
        return None
    text = Text("rows without an answer (counted as wrong): ", style="bold red")
    for name, errors in failed.items():
        text.append(f"{name}: " + ", ".join(f"{code} {n}" for code, n in errors.items()) + "  ")
    return text
