"""The pictures of a benchmark, as PNG and SVG; matplotlib is an optional extra.

Every picture says on what it was measured, and the labels of the record stand below it: a stand-in
or random weights cannot be cropped into somebody else's figure by accident.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwire.errors import InputError

if TYPE_CHECKING:
    from agentwire.benchmark.record import BenchRecord, CellRecord

TITLES = {
    "bridge": "bridge",
    "receiver_direct": "receiver direct",
    "receiver_replicas": "receiver direct, two replicas",
    "text_relay": "text relay",
    "in_process": "bridge in one process, no bus",
}
COLOURS = {
    "bridge": "#4053d3",
    "receiver_direct": "#00a878",
    "receiver_replicas": "#7fc97f",
    "text_relay": "#d1495b",
    "in_process": "#9a9a9a",
}
MARKERS = {"bridge": "o", "receiver_direct": "s", "receiver_replicas": "D", "text_relay": "^"}
STAGES = ("tokenize", "encode", "bridge", "generate", "queue", "wire", "decode")
STAGE_COLOURS = ("#bbbbbb", "#4053d3", "#b04bd6", "#d1495b", "#e6b800", "#35b6c4", "#00a878")
SIZE = (7.5, 4.6)  # inches


def check_plots(folder: Path) -> None:
    """Proves that pictures can be drawn there.

    Raises:
        InputError: matplotlib is missing, or the folder cannot be made.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "pictures need matplotlib, which is not installed.",
            hint="Run `pip install 'agentwire[plots]'`, or leave --plots out.",
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made: {error.strerror}.", hint="Name another folder with --plots."
        ) from None


def draw(record: BenchRecord, folder: Path, stem: str = "") -> list[Path]:
    """Draws what the record holds; the files, each as .png and .svg.

    Args:
        stem: what the files' names begin with; default: the scenario's name.

    Raises:
        InputError: see ``check_plots``.
    """
    check_plots(folder)
    stem = stem or record.scenario
    made: list[Path] = []
    for name, picture, wanted in (
        ("throughput", _throughput, _compared(record)),
        ("stages", _stages, [c for c in record.cells if c.kind == "latency" and c.stages_ms]),
        ("lengths", _lengths, _bridge_lengths(record)),
    ):
        if len(wanted) > (1 if name == "lengths" else 0):
            made += _drawn(record, folder / f"{stem}-{name}", picture, wanted)
    return made


def _compared(record: BenchRecord) -> list[CellRecord]:
    first = record.settings["text_tokens"][0]
    return [
        c for c in record.cells
        if c.kind == "throughput" and c.text_tokens == first and c.rows_per_s is not None
    ]  # fmt: skip


def _bridge_lengths(record: BenchRecord) -> list[CellRecord]:
    cells = [c for c in record.cells if c.kind == "latency" and c.method == "bridge"]
    return sorted((c for c in cells if c.stages_ms), key=lambda c: c.text_tokens)


def _drawn(
    record: BenchRecord, path: Path, picture: Callable[..., None], cells: list[CellRecord]
) -> Iterator[Path]:
    with _figure(record) as (figure, axes):
        picture(record, axes, cells)
        for suffix in (".png", ".svg"):
            file = path.with_name(path.name + suffix)
            # The same record gives the same bytes: no date in the file.
            metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
            figure.savefig(file, dpi=144, metadata=metadata)
            yield file


@contextmanager
def _figure(record: BenchRecord) -> Iterator[tuple[Any, Any]]:
    import matplotlib

    look: Any = {"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
    with matplotlib.rc_context({**look, "svg.hashsalt": "agentwire", "svg.fonttype": "none"}):
        from matplotlib.figure import Figure  # without pyplot: no display, no global state

        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        figure.supxlabel(caption(record), fontsize=6.5, color="#555555")
        yield figure, axes


def caption(record: BenchRecord) -> str:
    """What was measured, on what, when; the labels of the record."""
    hardware = record.hardware
    gpus = (f"{count} x {name}" for name, count in Counter(hardware.gpus).items())
    where = ", ".join(gpus) or f"{hardware.cores} cores of {hardware.cpu}"
    models = " -> ".join(dict.fromkeys(agent.model for agent in record.agents.values()))
    return "\n".join([f"{models}; {where}; {record.started[:10]}", *record.labels])


def _throughput(record: BenchRecord, axes: Any, cells: list[CellRecord]) -> None:
    from matplotlib.ticker import LogLocator

    for method, title in TITLES.items():
        points = [(c.batch_size, c.rows_per_s) for c in cells if c.method == method]
        if points:
            axes.plot(
                *zip(*sorted(points), strict=True),
                label=title,
                color=COLOURS[method],
                marker=MARKERS.get(method, "."),
                linestyle="--" if method == "in_process" else "-",
            )
    sizes = sorted({c.batch_size for c in cells})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("batch size")
    axes.set_ylabel("samples/s (log)")
    axes.set_title(f"Throughput, texts of {record.settings['text_tokens'][0]} tokens")
    axes.legend(fontsize=8)


def _stages(record: BenchRecord, axes: Any, cells: list[CellRecord]) -> None:
    first = record.settings["text_tokens"][0]
    shown = [c for c in cells if c.text_tokens == first][::-1]
    names = [TITLES[c.method] for c in shown]
    left = [0.0] * len(shown)
    for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
        widths = [c.stages_ms.get(stage, 0.0) for c in shown]
        if any(widths):
            axes.barh(names, widths, left=left, label=stage, color=colour)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, cell in enumerate(shown):
        if cell.latency_ms is not None:
            axes.text(left[y], y, f" {cell.latency_ms.p50:,.1f} ms", va="center", fontsize=8)
    axes.set_xlim(0, max(left) * 1.15)
    axes.set_xlabel("milliseconds, medians")
    axes.set_title(f"Latency of one text of {first} tokens, by stage")
    axes.legend(fontsize=8)


def _lengths(record: BenchRecord, axes: Any, cells: list[CellRecord]) -> None:
    lengths = [c.text_tokens for c in cells]
    sender = [sum(c.stages_ms.get(s, 0.0) for s in ("tokenize", "encode", "bridge")) for c in cells]
    receiver = [c.stages_ms.get("decode", 0.0) for c in cells]
    whole = [c.latency_ms.p50 if c.latency_ms else 0.0 for c in cells]
    axes.plot(lengths, whole, label="whole", color="#333333", marker="o")
    axes.plot(lengths, sender, label="sender and bridge", color=COLOURS["bridge"], marker="s")
    axes.plot(lengths, receiver, label="receiver", color=COLOURS["receiver_direct"], marker="D")
    axes.set_xticks(lengths)
    axes.set_ylim(0)
    axes.set_xlabel("text length, tokens of the sender")
    axes.set_ylabel("milliseconds, medians, batch 1")
    axes.set_title("Latency against text length")
    axes.legend(loc="upper left", fontsize=8)
    payload = axes.twinx()
    payload.plot(
        lengths, [c.payload_bytes / 1024 for c in cells], color="#e6b800", linestyle=":", marker="x"
    )
    payload.set_ylim(0, max(c.payload_bytes for c in cells) / 1024 * 2 or 1)
    payload.set_ylabel("payload, KiB (dotted)")
    payload.grid(False)
