"""Tables of runs and of latency and throughput records, and the goals set before measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rendering.markdown import DASH, Record, Records, number, table

METHODS = {
    "bridge": ("bridge", ""),
    "receiver_direct": ("receiver direct", "direct_"),
    "receiver_replicas": ("two replicas", "direct_equal_gpus_"),
    "text_relay": ("text relay", "text_relay_"),
    "in_process": ("one process", "in_process_"),
}
"""Title in tables, and prefix of the method's figures."""
STAGES = ("tokenize", "encode", "bridge", "generate", "queue", "wire", "decode")
RATIOS = {
    "to direct": "vs_direct",
    "to replicas": "vs_direct_equal_gpus",
    "to relay": "vs_text_relay_throughput",
    "bus cost": "bus_cost",
}
PAPERS = {
    "e2e_p50_ms@1": 37.3,
    "text_relay_e2e_p50_ms@1": 834.5,
    "samples_per_s@16": 109.0,
    "direct_samples_per_s@16": 123.0,
    "vs_text_relay_latency@1": 834.5 / 37.3,
    "vs_direct@16": 109.0 / 123.0,
}
"""Reported by the source papers for the 8B and 7B pair on one H100."""


def run(record: Record) -> str:
    """Methods of one ``agentwire run``."""
    header = ["method", "accuracy", "95 %", "right", "p50 ms", "p95 ms", "rows/s"]
    rows = [
        [
            name.replace("_", " "),
            f"{m['accuracy']:.3f}",
            f"{m['wilson95'][0]:.3f} .. {m['wilson95'][1]:.3f}",
            f"{m['correct']:,} / {m['n']:,}",
            f"{m['latency_ms']['p50']:,.0f}",
            f"{m['latency_ms']['p95']:,.0f}",
            f"{m['rows_per_s']:.1f}",
            f"{m['payload_bytes']:,.0f}",
        ]
        for name, m in record["methods"].items()
    ]
    return table([*header, "bytes a row"], rows)


def run_stages(record: Record) -> str:
    """Mean milliseconds of a row by stage."""
    methods = record["methods"]
    stages = [s for s in STAGES if any(s in m["stages_ms"] for m in methods.values())]
    rows = [
        [name.replace("_", " "), *(f"{m['stages_ms'].get(stage, 0):,.1f}" for stage in stages)]
        for name, m in methods.items()
    ]
    return table(["method", *stages], rows)


def latency(record: Record) -> str:
    cells = _cells(record, "latency")
    stages = [s for s in STAGES if any(cell["stages_ms"].get(s) for cell in cells)]
    rows = []
    for cell in cells:
        found = cell["latency_ms"]
        times = [number(found[p]) for p in ("p50", "p95", "p99")]
        spent = [number(cell["stages_ms"].get(stage, 0.0)) for stage in stages]
        rows.append([METHODS[cell["method"]][0], *times, str(found["n"]), *spent])
    return table(["method", "p50", "p95", "p99", "n", *stages], rows)


def throughput(record: Record) -> str:
    cells, figures = _cells(record, "throughput"), record["figures"]
    rate = {(c["method"], c["batch_size"]): c["rows_per_s"] for c in cells}
    methods = [method for method in METHODS if any(c["method"] == method for c in cells)]
    rows = []
    for size in sorted({c["batch_size"] for c in cells}):
        ratios = [_ratio(figures, name, str(size)) for name in RATIOS.values()]
        rows.append([str(size), *(number(rate.get((m, size))) for m in methods), *ratios])
    best = (number(figures.get(f"{METHODS[m][1]}samples_per_s@best")) for m in methods)
    ratios = [_ratio(figures, name, "best") for name in RATIOS.values()]
    rows.append(["best of each", *best, *ratios])
    return table(["batch", *(METHODS[m][0] for m in methods), *RATIOS], rows)


def lengths(record: Record) -> str:
    """By text length: one text at a time, and ratios at the batch size of lengths."""
    figures, plan = record["figures"], record["settings"]
    rows = []
    for tokens in plan["text_tokens"]:
        at = "" if tokens == plan["text_tokens"][0] else f"/{tokens}tok"
        names = ("e2e_p50_ms", "sender_ms", "receiver_ms", "payload_bytes")
        values = [number(figures.get(f"{name}@1{at}")) for name in names]
        batch = f"{plan['length_batch']}{at}"
        ratios = [_ratio(figures, name, batch) for name in ("vs_direct", "vs_direct_equal_gpus")]
        rows.append([str(tokens), *values, *ratios])
    header = ["tokens", "p50 ms", "sender ms", "receiver ms", "payload bytes"]
    return table([*header, "to direct", "to replicas"], rows)


def papers_speed(record: Record) -> str:
    figures = record["figures"]
    rows = [[f"`{name}`", number(value), number(figures[name])] for name, value in PAPERS.items()]
    return table(["figure", "papers, one H100", "here"], rows)


def machines(records: Records) -> str:
    """README's table: batches of 16, texts of 48 tokens."""
    rows = []
    for what, name in (
        ("two H100s, 8B and 7B shapes, **random weights**", "speed-h100x2"),
        ("two CPU cores, **small pair**", "speed-cpu"),
    ):
        figures = records[name]["figures"]
        ratios = [_ratio(figures, ratio, "16") for ratio in ("vs_direct", "vs_direct_equal_gpus")]
        rate, p50 = number(figures["samples_per_s@16"]), number(figures["e2e_p50_ms@1"])
        rows.append([what, rate, *ratios, f"{p50} ms"])
    return table(["", "rows/s", "to one receiver", "to two receivers", "p50, one text"], rows)


def draw(records: Records, folder: Path) -> list[Path]:
    """Pictures of every latency or throughput record; needs matplotlib."""
    from agentwire.benchmark.plots import draw as draw_record
    from agentwire.benchmark.record import BenchRecord

    made: list[Path] = []
    for name, record in records.items():
        if record.get("benchmark") == "all":
            made += draw_record(BenchRecord.model_validate(record), folder, name)
    return made


def _cells(record: Record, kind: str) -> list[Record]:
    """Cells of the first text length."""
    tokens = record["settings"]["text_tokens"][0]
    return [c for c in record["cells"] if (c["kind"], c["text_tokens"]) == (kind, tokens)]


def _ratio(figures: Mapping[str, float], name: str, at: str) -> str:
    value = figures.get(f"{name}@{at}")
    if value is None:
        return DASH
    return f"{value:.1%}" if name == "bus_cost" else f"{value:.2f} x"


# -- goals ----------------------------------------------------------------------------------------

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that was set before measuring.

    Attributes:
        figure: name in the record's figures, or a function of them.
        least: the bound is the least that is wanted, otherwise the most.
    """

    what: str
    record: str
    figure: str | Callable[[Figures], float]
    bound: float
    shape: str = "{:.2f} x"
    least: bool = True


def _sum_of(*endings: str) -> Callable[[Figures], float]:
    return lambda figures: sum(figures[key] for key in figures if key.endswith(endings))


GPUS, BUS = "speed-h100x2", "bus-cpu"
GOALS = (
    Goal("one text, end to end, p50", GPUS, "e2e_p50_ms@1", 11.0, "{:.1f} ms", least=False),
    Goal(
        "one text: p99 to p50",
        GPUS,
        lambda figures: figures["e2e_p99_ms@1"] / figures["e2e_p50_ms@1"],
        1.5,
        least=False,
    ),
    Goal("stages against the whole", GPUS, "stages_gap@1", 0.05, "{:.1%}", least=False),
    Goal("bridge, batches of 16", GPUS, "samples_per_s@16", 850, "{:,.0f} rows/s"),
    Goal("bridge, best batch", GPUS, "samples_per_s@best", 1050, "{:,.0f} rows/s"),
    Goal("bridge to receiver direct, batch 1", GPUS, "vs_direct@1", 1.0),
    Goal("bridge to receiver direct, batch 4", GPUS, "vs_direct@4", 1.25),
    Goal("bridge to receiver direct, batch 16", GPUS, "vs_direct@16", 1.8),
    Goal("bridge to receiver direct, batch 64", GPUS, "vs_direct@64", 2.0),
    Goal("text relay's latency to the bridge's", GPUS, "vs_text_relay_latency@1", 20.0),
    Goal("bridge to text relay, batch 16", GPUS, "vs_text_relay_throughput@16", 12.0),
    Goal("cost of processes and bus, batch 16", GPUS, "bus_cost@16", 0.05, "{:.1%}", least=False),
    Goal("64 KiB one way, to bare sockets, p50", BUS, "bus_to_bare_p50", 2.0, least=False),
    Goal("messages/s, to bare sockets", BUS, "bus_to_bare_messages_per_s", 0.4),
    Goal("two batches in flight, to one process", "overhead-cpu", "ratio_in_flight_2", 1.0),
    Goal("goodput at twice the load", "load-cpu", "goodput_of_capacity", 0.9, "{:.4f}"),
    Goal(
        "requests lost or answered twice under faults",
        "chaos",
        _sum_of("_lost", "_duplicated"),
        0,
        "{:,.0f}",
        least=False,
    ),
    Goal("wrong answers under faults", "chaos", _sum_of("_wrong"), 0, "{:,.0f}", least=False),
    Goal("messages of the soak test", "soak-cpu", "messages", 1_000_000, "{:,.0f}"),
    Goal("messages lost in it", "soak-cpu", "lost", 0, "{:,.0f}", least=False),
)


def goals(records: Records) -> str:
    """Every goal of speed and endurance beside what was measured; bold: missed."""
    rows = []
    for goal in GOALS:
        figures = records[goal.record]["figures"]
        figure = goal.figure
        value = figures[figure] if isinstance(figure, str) else figure(figures)
        reached = value >= goal.bound if goal.least else value <= goal.bound
        bound = f"{'at least' if goal.least else 'at most'} {goal.shape.format(goal.bound)}"
        measured = goal.shape.format(value)
        rows.append([goal.what, bound, measured if reached else f"**{measured}**", goal.record])
    return table(["what", "goal", "measured", "record"], rows)


TABLES: dict[str, Callable[..., str]] = {
    "run": run,
    "run-stages": run_stages,
    "latency": latency,
    "throughput": throughput,
    "lengths": lengths,
    "papers-speed": papers_speed,
}
