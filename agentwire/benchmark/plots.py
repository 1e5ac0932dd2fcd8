"""Pictures of a benchmark as PNG and SVG; matplotlib is an optional extra.

The models, the machine and the labels of the record are part of every picture, so that stand-ins
and random weights stay visible when it is copied.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwire.errors import InputError

if TYPE_CHECKING:
    from agentwire.benchmark.record import BenchRecord, MeasurementRecord

STYLES = {
    "bridge": ("bridge", "#4053d3", "o-"),
    "receiver_direct": ("receiver direct", "#00a878", "s-"),
    "receiver_replicas": ("receiver direct, two replicas", "#7fc97f", "D-"),
    "text_relay": ("text relay", "#d1495b", "^-"),
    "in_process": ("bridge in one process, no bus", "#9a9a9a", ".--"),
}
"""Title, colour and line of each method."""
STAGE_COLOURS = {
    "tokenize": "#bbbbbb",
    "encode": "#4053d3",
    "bridge": "#b04bd6",
    "generate": "#d1495b",
    "queue": "#e6b800",
    "wire": "#35b6c4",
    "decode": "#00a878",
}
SIZE = (7.5, 4.6)  # inches
LOOK: Any = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "svg.hashsalt": "agentwire",
    "svg.fonttype": "none",
}


def check_plots(folder: Path) -> None:
    """Raises InputError if matplotlib is missing, or if ``folder`` cannot be made."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "Pictures need matplotlib, which is not installed.",
            hint="Run `pip install '.[plots]'`, or leave --plots out.",
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot create {folder}: {error.strerror}.", hint="Name another folder with --plots."
        ) from None


def draw(record: BenchRecord, folder: Path, stem: str = "") -> list[Path]:
    """Draws the record; the files, whose names begin with ``stem`` or the scenario's name."""
    check_plots(folder)
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    first = record.settings["text_tokens"][0]
    timed = [c for c in record.cells if c.kind == "latency" and c.stages_ms]
    rated = [c for c in record.cells if c.kind == "throughput" and c.rows_per_s is not None]
    lengths = sorted((c for c in timed if c.method == "bridge"), key=lambda c: c.text_tokens)
    made: list[Path] = []
    for name, picture, cells in (
        ("throughput", _throughput, [c for c in rated if c.text_tokens == first]),
        ("stages", _stages, [c for c in timed if c.text_tokens == first]),
        ("lengths", _lengths, lengths if len(lengths) > 1 else []),
    ):
        if cells:
            path = folder / f"{stem or record.scenario}-{name}"
            with matplotlib.rc_context(LOOK):
                figure = Figure(figsize=SIZE, layout="constrained")
                figure.supxlabel(caption(record), fontsize=6.5, color="#555555")
                picture(record, figure.add_subplot(), cells)
                # The same record gives the same bytes: no date in the files.
                for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
                    made.append(path.with_name(path.name + suffix))
                    figure.savefig(made[-1], dpi=144, metadata=metadata)
    return made


def caption(record: BenchRecord) -> str:
    """Models, machine, date and labels."""
    hardware = record.hardware
    gpus = (f"{count} x {name}" for name, count in Counter(hardware.gpus).items())
    where = ", ".join(gpus) or f"{hardware.cores} cores of {hardware.cpu}"
    models = " -> ".join(dict.fromkeys(agent.model for agent in record.agents.values()))
    return "\n".join([f"{models}; {where}; {record.started[:10]}", *record.labels])


def _throughput(record: BenchRecord, axes: Any, cells: list[MeasurementRecord]) -> None:
    from matplotlib.ticker import LogLocator

    for method, (title, colour, line) in STYLES.items():
        points = sorted((c.batch_size, c.rows_per_s) for c in cells if c.method == method)
        if points:
            axes.plot(*zip(*points, strict=True), line, label=title, color=colour)
    sizes = sorted({c.batch_size for c in cells})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    title = f"Throughput, texts of {record.settings['text_tokens'][0]} tokens"
    axes.set(xlabel="batch size", ylabel="samples/s (log)", title=title)
    axes.legend(fontsize=8)


def _stages(record: BenchRecord, axes: Any, cells: list[MeasurementRecord]) -> None:
    shown = cells[::-1]
    names = [STYLES[c.method][0] for c in shown]
    left = [0.0] * len(shown)
    for stage, colour in STAGE_COLOURS.items():
        widths = [c.stages_ms.get(stage, 0.0) for c in shown]
        if any(widths):
            axes.barh(names, widths, left=left, label=stage, color=colour)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, cell in enumerate(shown):
        if cell.latency_ms is not None:
            axes.text(left[y], y, f" {cell.latency_ms.p50:,.1f} ms", va="center", fontsize=8)
    title = f"Latency of one text of {record.settings['text_tokens'][0]} tokens, by stage"
    axes.set(xlim=(0, max(left) * 1.15), xlabel="milliseconds, medians", title=title)
    axes.legend(fontsize=8)


def _lengths(record: BenchRecord, axes: Any, cells: list[MeasurementRecord]) -> None:
    lengths = [c.text_tokens for c in cells]
    sender = [sum(c.stages_ms.get(s, 0.0) for s in ("tokenize", "encode", "bridge")) for c in cells]
    receiver = [c.stages_ms.get("decode", 0.0) for c in cells]
    whole = [c.latency_ms.p50 if c.latency_ms else 0.0 for c in cells]
    axes.plot(lengths, whole, label="whole", color="#333333", marker="o")
    axes.plot(lengths, sender, label="sender and bridge", color="#4053d3", marker="s")
    axes.plot(lengths, receiver, label="receiver", color="#00a878", marker="D")
    axes.set_xticks(lengths)
    axes.set_ylim(0)
    axes.set(
        xlabel="text length, tokens of the sender",
        ylabel="milliseconds, medians, batch 1",
        title="Latency against text length",
    )
    axes.legend(loc="upper left", fontsize=8)
    payload, kib = axes.twinx(), [c.payload_bytes / 1024 for c in cells]
    payload.plot(lengths, kib, color="#e6b800", linestyle=":", marker="x")
    payload.set_ylim(0, max(kib) * 2 or 1)
    payload.set_ylabel("payload, KiB (dotted)")
    payload.grid(False)
