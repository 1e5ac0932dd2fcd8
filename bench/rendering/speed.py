"""Latency and throughput: the records of ``agentwire bench latency | throughput | all``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rendering.markdown import Record, Records, provenance, table

FIGURES = "figures"
"""Folder of the pictures, beside the document."""
PICTURES = ("throughput", "stages", "lengths")
TITLES = {
    "bridge": "bridge",
    "receiver_direct": "receiver direct",
    "receiver_replicas": "two replicas",
    "text_relay": "text relay",
    "in_process": "one process",
}
STAGES = ("tokenize", "encode", "bridge", "generate", "queue", "wire", "decode")
PAPERS = {
    "e2e_p50_ms@1": 37.3,
    "text_relay_e2e_p50_ms@1": 834.5,
    "samples_per_s@16": 109.0,
    "direct_samples_per_s@16": 123.0,
}
"""What the source papers report for the 8B and 7B pair on one H100."""
RATIOS = {
    "vs_text_relay_latency@1": ("text_relay_e2e_p50_ms@1", "e2e_p50_ms@1"),
    "vs_direct@16": ("samples_per_s@16", "direct_samples_per_s@16"),
}

NOTES = {
    "speed-h100x2": (
        "of code that differs from today's in two things: payloads were looked at while the "
        "receiver's device had begun, not before (about 0.05 ms less for one text), and agents "
        "looked without naps for the last 0.6 ms of a batch, not 0.2; "
        "a full garbage collection in the measuring process stopped two replicas at batch 4 for "
        "0.3 s in one round (863 rows/s in the other), so what is held against them there says "
        "nothing"
    ),
}
"""What a record does not say of the code that made it."""


def owns(name: str, record: Record) -> bool:
    """A record of cells."""
    return record.get("benchmark") in ("latency", "throughput", "all") and "cells" in record


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_section(name, record) for name, record in records.items())


def _section(name: str, record: Record) -> str:
    settings = record["settings"]
    facts = [
        *(f"- **{label}**" for label in record["labels"]),
        *(
            f"- {agent}: {a['model']}, {a['weights']} weights, {a['dtype']}, on {a['device']}"
            + (f", {a['threads']} threads" if a["device"] == "cpu" else "")
            for agent, a in record["agents"].items()
        ),
        f"- bridge: {settings['bridge']}; M = {settings['soft_tokens']}; "
        f"{settings['in_flight']} messages in flight (for each replica) where rows/s are measured; "
        f"{settings['rounds']} rounds in which the methods take turns; seed {settings['seed']}",
        *provenance(record),
    ]
    if record["interrupted"]:
        facts.append("- it was ended before the last round: `-` was not measured")
    if name in NOTES:
        facts.append(f"- {NOTES[name]}")
    parts = [f"## Speed: {_where(record)} ({name})", "\n".join(facts)]
    parts += _latency(record) + _throughput(record) + _lengths(record) + _papers(record)
    return "\n\n".join([*parts, *_pictures(name)])


def _where(record: Record) -> str:
    """The devices and whose weights, in a few words."""
    gpus, cores = record["hardware"].get("gpus"), record["hardware"].get("cores")
    devices = f"{len(gpus)} x {gpus[0]}" if gpus else f"{cores} CPU cores"
    random = any(agent["weights"] == "random" for agent in record["agents"].values())
    return f"{devices}, {'random weights' if random else 'small pair'}"


def _cells(record: Record, kind: str) -> list[Record]:
    return [c for c in record["cells"] if c["kind"] == kind]


def _first_length(record: Record) -> int:
    first: int = record["settings"]["text_tokens"][0]
    return first


def _latency(record: Record) -> list[str]:
    cells = [c for c in _cells(record, "latency") if c["text_tokens"] == _first_length(record)]
    if not cells:
        return []
    shown = [s for s in STAGES if any(c["stages_ms"].get(s) for c in cells)]
    rows = []
    for cell in cells:
        found = cell["latency_ms"] or {}
        times = [_number(found.get(p)) for p in ("p50", "p95", "p99")]
        stages = [_number(cell["stages_ms"].get(s, 0.0)) for s in shown]
        rows.append([TITLES[cell["method"]], *times, str(found.get("n", 0)), *stages])
    figures = record["figures"]
    gap = figures.get("stages_gap@1")
    says = (
        f"One text of {_first_length(record)} tokens at a time, milliseconds from call to answer, "
        "and the medians of its stages."
    )
    if gap is not None:
        says += (
            " The stages that agents and client report add up to the caller's own stopwatch "
            f"within {gap:.1%} (median over the bridge's messages)."
        )
    return [says, table(["method", "p50", "p95", "p99", "n", *shown], rows)]


def _throughput(record: Record) -> list[str]:
    cells = [c for c in _cells(record, "throughput") if c["text_tokens"] == _first_length(record)]
    if not cells:
        return []
    methods = [m for m in TITLES if any(c["method"] == m for c in cells)]
    rate = {(c["method"], c["batch_size"]): c["rows_per_s"] for c in cells}
    ratios = {
        "to direct": "vs_direct",
        "to replicas": "vs_direct_equal_gpus",
        "to relay": "vs_text_relay_throughput",
        "bus cost": "bus_cost",
    }
    figures = record["figures"]
    used = {title: n for title, n in ratios.items() if any(f.startswith(f"{n}@") for f in figures)}
    rows = []
    for size in sorted({c["batch_size"] for c in cells}):
        rates = [_number(rate.get((m, size))) for m in methods]
        of_bridge = [_ratio(figures.get(f"{n}@{size}"), n) for n in used.values()]
        rows.append([str(size), *rates, *of_bridge])
    best = ["best of each", *(_number(figures.get(_rate_name(m, "best"))) for m in methods)]
    best += [_ratio(figures.get(f"{n}@best"), n) for n in used.values()]
    return [
        "Rows a second by batch size, and the bridge as a ratio to the others (medians over rounds "
        "of the ratio within a round). `two replicas` gives the receiver as much hardware as the "
        "bridge has; `bus cost` is the share of rows/s lost to the same models in one process.",
        table(["batch", *(TITLES[m] for m in methods), *used], [*rows, best]),
    ]


def _lengths(record: Record) -> list[str]:
    figures, settings = record["figures"], record["settings"]
    lengths = settings["text_tokens"]
    if len(lengths) < 2 or "e2e_p50_ms@1" not in figures:
        return []
    batch = settings["length_batch"]
    names = ("e2e_p50_ms", "sender_ms", "receiver_ms", "payload_bytes")
    rows = []
    for tokens in lengths:
        at = "" if tokens == lengths[0] else f"/{tokens}tok"
        values = [_number(figures.get(f"{name}@1{at}")) for name in names]
        ratios = [
            _ratio(figures.get(f"{name}@{batch}{at}"), name)
            for name in ("vs_direct", "vs_direct_equal_gpus")
        ]
        rows.append([str(tokens), *values, *ratios])
    head = ["tokens", "p50 ms", "sender ms", "receiver ms", "payload bytes"]
    return [
        f"By text length: one text at a time, and the bridge's rows/s as a ratio at batch {batch}.",
        table([*head, "to direct", "to replicas"], rows),
    ]


def _papers(record: Record) -> list[str]:
    """Only where the papers' shapes were measured."""
    models = {a["model"].split("/")[-1] for a in record["agents"].values()}
    if not any("8B" in model for model in models):
        return []
    figures = record["figures"]
    papers: dict[str, float] = {
        **PAPERS,
        **{name: PAPERS[a] / PAPERS[b] for name, (a, b) in RATIOS.items()},
    }
    rows = [
        [f"`{name}`", _number(theirs), _number(figures.get(name))]
        for name, theirs in papers.items()
    ]
    return [
        "The source papers' figures are **theirs**: the trained pair on one H100. Ours: the same "
        "shapes with random weights on the hardware above.",
        table(["figure", "papers, one H100", "here"], rows),
    ]


def _pictures(name: str) -> Iterable[str]:
    for picture in PICTURES:
        if (_folder() / f"{name}-{picture}.svg").is_file():
            yield f"![{name}: {picture}]({FIGURES}/{name}-{picture}.svg)"


def _folder() -> Path:
    return Path(__file__).resolve().parents[2] / "docs" / FIGURES


def draw(records: Records) -> list[Path]:
    """Draws the pictures of these records into docs/figures; needs matplotlib."""
    from agentwire.benchmark.plots import draw as draw_record
    from agentwire.benchmark.record import BenchRecord

    made: list[Path] = []
    for name, record in records.items():
        if owns(name, record):
            made += draw_record(BenchRecord.model_validate(record), _folder(), name)
    return made


def _rate_name(method: str, at: str) -> str:
    prefix = {
        "bridge": "",
        "receiver_direct": "direct_",
        "receiver_replicas": "direct_equal_gpus_",
        "text_relay": "text_relay_",
        "in_process": "in_process_",
    }[method]
    return f"{prefix}samples_per_s@{at}"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name == "bus_cost" else f"{value:.2f} x"
