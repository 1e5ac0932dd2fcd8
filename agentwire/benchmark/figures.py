"""From bursts to figures: medians, percentiles, and ratios between methods of the same round.

A ratio is the median over rounds of the ratio within a round, because what slows the machine down
for a while slows both. Names are ``<what>@<batch size>``, with ``/<n>tok`` behind it for texts that
have not the plan's first length.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from agentwire.benchmark.drive import Burst
from agentwire.benchmark.plan import Cell
from agentwire.benchmark.record import CellRecord, Percentiles
from agentwire.spec.scenario import BenchMethod, BenchPlan
from agentwire.task.metrics import percentile

Cost = Callable[[Burst], float | None]
Seen = Mapping[Cell, Sequence[Burst]]
"""Bursts of each cell, one a round."""

PREFIX = {
    "receiver_direct": "direct",
    "receiver_replicas": "direct_equal_gpus",
    "text_relay": "text_relay",
    "in_process": "in_process",
}
SENDER_STAGES = ("tokenize", "encode", "bridge")


def record_of(cell: Cell, bursts: Sequence[Burst], in_flight: int, error: str = "") -> CellRecord:
    """One cell over all rounds."""
    latencies = [ms for burst in bursts for ms in burst.latencies_ms]
    rates = [burst.rows_per_s for burst in bursts if burst.rows_per_s is not None]
    return CellRecord(
        kind=cell.kind,
        method=cell.method,
        batch_size=cell.batch_size,
        text_tokens=cell.text_tokens,
        in_flight=in_flight,
        latency_ms=percentiles(latencies),
        p50_ms_rounds=[_round(statistics.median(b.latencies_ms)) for b in bursts if b.latencies_ms],
        stages_ms=stage_medians(bursts),
        rows_per_s=_round(statistics.median(rates)) if rates else None,
        rows_per_s_rounds=[_round(rate) for rate in rates],
        payload_bytes=bursts[-1].payload_bytes if bursts else 0,
        error=error,
    )


def percentiles(latencies_ms: Sequence[float]) -> Percentiles | None:
    """p50, p95 and p99; None of nothing."""
    if not latencies_ms:
        return None
    p50, p95, p99 = (_round(percentile(latencies_ms, q)) for q in (50, 95, 99))
    return Percentiles(p50=p50, p95=p95, p99=p99, n=len(latencies_ms))


def stage_medians(bursts: Sequence[Burst]) -> dict[str, float]:
    """Median milliseconds of each stage over all messages; one that lacks a stage spent 0."""
    messages = [stages for burst in bursts for stages in burst.stages_ms]
    names = sorted({name for stages in messages for name in stages})
    return {name: _round(statistics.median(s.get(name, 0.0) for s in messages)) for name in names}


def stages_gap(bursts: Sequence[Burst]) -> float:
    """How far a message's stages are from its latency, as a fraction of that: the median.

    The latency is of the caller's own stopwatch, the stages are what agents and client report.
    """
    gaps = [
        abs(ms - sum(stages.values())) / ms
        for burst in bursts
        for ms, stages in zip(burst.latencies_ms, burst.stages_ms, strict=True)
    ]
    return _round(statistics.median(gaps))


def figures_of(seen: Seen, plan: BenchPlan) -> dict[str, float]:
    """The flat map; what was not measured is not in it."""
    figures: dict[str, float] = {}
    for cell, bursts in seen.items():
        if bursts and cell.kind == "latency":
            figures |= _latency(cell, bursts, seen, plan)
        elif bursts:
            figures |= _throughput(cell, bursts, seen, plan)
    return {**figures, **_best(seen, plan)}


def _at(cell: Cell, plan: BenchPlan) -> str:
    length = "" if cell.text_tokens == plan.text_tokens[0] else f"/{cell.text_tokens}tok"
    return f"@{cell.batch_size}{length}"


def _latency(cell: Cell, bursts: Sequence[Burst], seen: Seen, plan: BenchPlan) -> dict[str, float]:
    at = _at(cell, plan)
    found = percentiles([ms for burst in bursts for ms in burst.latencies_ms])
    if found is None:
        return {}
    name = "e2e" if cell.method == "bridge" else f"{PREFIX[cell.method]}_e2e"
    figures = {
        f"{name}_p50_ms{at}": found.p50,
        f"{name}_p95_ms{at}": found.p95,
        f"{name}_p99_ms{at}": found.p99,
    }
    if cell.method == "bridge":
        stages = stage_medians(bursts)
        figures[f"stages_gap{at}"] = stages_gap(bursts)
        figures[f"sender_ms{at}"] = _round(sum(stages.get(s, 0.0) for s in SENDER_STAGES))
        figures[f"receiver_ms{at}"] = stages.get("decode", 0.0)
        figures[f"wire_ms{at}"] = stages.get("wire", 0.0)
        figures[f"payload_bytes{at}"] = bursts[-1].payload_bytes
        for other in PREFIX:
            ratio = _ratio(cell, other, seen, _p50)
            if ratio is not None:
                figures[f"vs_{PREFIX[other]}_latency{at}"] = ratio
    return figures


def _throughput(
    cell: Cell, bursts: Sequence[Burst], seen: Seen, plan: BenchPlan
) -> dict[str, float]:
    at = _at(cell, plan)
    rates = [rate for burst in bursts if (rate := burst.rows_per_s) is not None]
    if not rates:
        return {}
    prefix = "" if cell.method == "bridge" else f"{PREFIX[cell.method]}_"
    figures = {f"{prefix}samples_per_s{at}": _round(statistics.median(rates))}
    if cell.method == "bridge":
        for other, name in (
            ("receiver_direct", "vs_direct"),
            ("receiver_replicas", "vs_direct_equal_gpus"),
            ("text_relay", "vs_text_relay_throughput"),
        ):
            ratio = _ratio(cell, other, seen, _inverse_rate)
            if ratio is not None:
                figures[f"{name}{at}"] = ratio
        ratio = _ratio(cell, "in_process", seen, _inverse_rate)
        if ratio is not None:
            figures[f"bus_cost{at}"] = _round(1 - ratio)
    return figures


def _best(seen: Seen, plan: BenchPlan) -> dict[str, float]:
    """Each method at its own best batch size, and the bridge against them."""
    best: dict[str, tuple[float, int]] = {}
    for cell, bursts in seen.items():
        rates = [rate for burst in bursts if (rate := burst.rows_per_s) is not None]
        if cell.kind == "throughput" and rates and cell.text_tokens == plan.text_tokens[0]:
            found = (statistics.median(rates), cell.batch_size)
            best[cell.method] = max(best.get(cell.method, (0.0, 0)), found)
    figures: dict[str, float] = {}
    for method, (rate, size) in best.items():
        prefix = "" if method == "bridge" else f"{PREFIX[method]}_"
        figures[f"{prefix}samples_per_s@best"] = _round(rate)
        figures[f"{prefix}best_batch"] = size
    if "bridge" in best:
        for other, name in (
            ("receiver_direct", "vs_direct@best"),
            ("receiver_replicas", "vs_direct_equal_gpus@best"),
            ("text_relay", "vs_text_relay_throughput@best"),
        ):
            if other in best:
                figures[name] = _round(best["bridge"][0] / best[other][0])
    return figures


def _ratio(cell: Cell, other: str, seen: Seen, cost: Cost) -> float | None:
    """Cost of another method over that of ``cell``: the median over rounds."""
    method: BenchMethod = other  # type: ignore[assignment]
    rival = seen.get(Cell(cell.kind, method, cell.batch_size, cell.text_tokens), ())
    pairs = [
        (mine, theirs)
        for own, foreign in zip(seen[cell], rival, strict=False)
        if (mine := cost(own)) is not None and (theirs := cost(foreign)) is not None
    ]
    return _round(statistics.median(b / a for a, b in pairs)) if pairs else None


def _p50(burst: Burst) -> float | None:
    return statistics.median(burst.latencies_ms) if burst.latencies_ms else None


def _inverse_rate(burst: Burst) -> float | None:
    rate = burst.rows_per_s
    return 1 / rate if rate else None


def _round(value: float) -> float:
    return float(f"{value:.5g}")
