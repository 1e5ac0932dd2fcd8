"""From bursts to figures: medians, percentiles, and ratios between methods.

A ratio is the median over rounds of the ratio within a round, because a slow machine slows both
sides. Names are ``<what>@<batch size>``, followed by ``/<n>tok`` for texts of another length than
the plan's first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agentwire.benchmark.drive import Burst
from agentwire.benchmark.plan import Measurement
from agentwire.benchmark.record import MeasurementRecord, Percentiles
from agentwire.spec.scenario import BenchMethod, BenchPlan
from agentwire.task.metrics import percentile

Cost = Callable[[Burst], float | None]
Bursts = Mapping[Measurement, Sequence[Burst]]
"""One burst a round."""

PREFIX: dict[BenchMethod, str] = {
    "receiver_direct": "direct",
    "receiver_replicas": "direct_equal_gpus",
    "text_relay": "text_relay",
    "in_process": "in_process",
}
RATIOS: dict[BenchMethod, str] = {
    "receiver_direct": "vs_direct",
    "receiver_replicas": "vs_direct_equal_gpus",
    "text_relay": "vs_text_relay_throughput",
}
SENDER_STAGES = ("tokenize", "encode", "bridge")


def record_of(
    measurement: Measurement, bursts: Sequence[Burst], in_flight: int, error: str = ""
) -> MeasurementRecord:
    """One measurement over all rounds."""
    rates = _rates(bursts)
    return MeasurementRecord(
        kind=measurement.kind,
        method=measurement.method,
        batch_size=measurement.batch_size,
        text_tokens=measurement.text_tokens,
        in_flight=in_flight,
        latency_ms=percentiles(_latencies(bursts)),
        p50_ms_rounds=[_round(statistics.median(b.latencies_ms)) for b in bursts if b.latencies_ms],
        stages_ms=stage_medians(bursts),
        rows_per_s=_round(statistics.median(rates)) if rates else None,
        rows_per_s_rounds=[_round(rate) for rate in rates],
        payload_bytes=bursts[-1].payload_bytes if bursts else 0,
        error=error,
    )


def percentiles(latencies_ms: Sequence[float]) -> Percentiles | None:
    """p50, p95 and p99; None for an empty sequence."""
    if not latencies_ms:
        return None
    p50, p95, p99 = (_round(percentile(latencies_ms, q)) for q in (50, 95, 99))
    return Percentiles(p50=p50, p95=p95, p99=p99, n=len(latencies_ms))


def stage_medians(bursts: Sequence[Burst]) -> dict[str, float]:
    """Median milliseconds of each stage over all messages; a missing stage counts as 0."""
    messages = [stages for burst in bursts for stages in burst.stages_ms]
    names = sorted({name for stages in messages for name in stages})
    return {name: _round(statistics.median(s.get(name, 0.0) for s in messages)) for name in names}


def stages_gap(bursts: Sequence[Burst]) -> float:
    """Median distance of the sum of a message's stages from its latency, as a fraction of it."""
    gaps = [
        abs(ms - sum(stages.values())) / ms
        for burst in bursts
        for ms, stages in zip(burst.latencies_ms, burst.stages_ms, strict=True)
    ]
    return _round(statistics.median(gaps))


def figures_of(seen: Bursts, plan: BenchPlan) -> dict[str, float]:
    """The flat map, without what was not measured."""
    figures: dict[str, float] = {}
    for measurement, bursts in seen.items():
        length = measurement.text_tokens
        suffix = "" if length == plan.text_tokens[0] else f"/{length}tok"
        at = f"@{measurement.batch_size}{suffix}"
        if bursts and measurement.kind == "latency":
            figures |= _latency(measurement, bursts, seen, at)
        elif bursts:
            figures |= _throughput(measurement, bursts, seen, at)
    return {**figures, **_best(seen, plan)}


def _latency(
    measurement: Measurement, bursts: Sequence[Burst], seen: Bursts, at: str
) -> dict[str, float]:
    found = percentiles(_latencies(bursts))
    if found is None:
        return {}
    name = f"{_prefix(measurement.method)}e2e"
    figures = {
        f"{name}_p50_ms{at}": found.p50,
        f"{name}_p95_ms{at}": found.p95,
        f"{name}_p99_ms{at}": found.p99,
    }
    if measurement.method != "bridge":
        return figures
    stages = stage_medians(bursts)
    figures[f"stages_gap{at}"] = stages_gap(bursts)
    figures[f"sender_ms{at}"] = _round(sum(stages.get(s, 0.0) for s in SENDER_STAGES))
    figures[f"receiver_ms{at}"] = stages.get("decode", 0.0)
    figures[f"wire_ms{at}"] = stages.get("wire", 0.0)
    figures[f"payload_bytes{at}"] = bursts[-1].payload_bytes
    ratios = _ratios(measurement, seen, _p50)
    return figures | {f"vs_{PREFIX[m]}_latency{at}": ratio for m, ratio in ratios.items()}


def _throughput(
    measurement: Measurement, bursts: Sequence[Burst], seen: Bursts, at: str
) -> dict[str, float]:
    rates = _rates(bursts)
    if not rates:
        return {}
    prefix = _prefix(measurement.method)
    figures = {f"{prefix}samples_per_s{at}": _round(statistics.median(rates))}
    if measurement.method == "bridge":
        ratios = _ratios(measurement, seen, _inverse_rate)
        figures |= {f"{RATIOS[m]}{at}": r for m, r in ratios.items() if m in RATIOS}
        if "in_process" in ratios:
            figures[f"bus_cost{at}"] = _round(1 - ratios["in_process"])
    return figures


def _best(seen: Bursts, plan: BenchPlan) -> dict[str, float]:
    """Each method at its own best batch size, and the bridge against them."""
    best: dict[BenchMethod, tuple[float, int]] = {}
    for one, bursts in seen.items():
        rates = _rates(bursts)
        if one.kind == "throughput" and rates and one.text_tokens == plan.text_tokens[0]:
            found = (statistics.median(rates), one.batch_size)
            best[one.method] = max(best.get(one.method, (0.0, 0)), found)
    figures: dict[str, float] = {}
    for method, (rate, size) in best.items():
        figures[f"{_prefix(method)}samples_per_s@best"] = _round(rate)
        figures[f"{_prefix(method)}best_batch"] = size
    for other, name in RATIOS.items():
        if "bridge" in best and other in best:
            figures[f"{name}@best"] = _round(best["bridge"][0] / best[other][0])
    return figures


def _prefix(method: BenchMethod) -> str:
    return "" if method == "bridge" else f"{PREFIX[method]}_"


def _latencies(bursts: Sequence[Burst]) -> list[float]:
    return [ms for burst in bursts for ms in burst.latencies_ms]


def _rates(bursts: Sequence[Burst]) -> list[float]:
    return [rate for burst in bursts if (rate := burst.rows_per_s) is not None]


def _ratios(measurement: Measurement, seen: Bursts, cost: Cost) -> dict[BenchMethod, float]:
    """Cost of each other method over that of ``measurement``: the median over rounds."""
    found: dict[BenchMethod, float] = {}
    for other in PREFIX:
        theirs = seen.get(replace(measurement, method=other), ())
        ratios = [
            b / a
            for mine, burst in zip(seen[measurement], theirs, strict=False)
            if (a := cost(mine)) is not None and (b := cost(burst)) is not None
        ]
        if ratios:
            found[other] = _round(statistics.median(ratios))
    return found


def _p50(burst: Burst) -> float | None:
    return statistics.median(burst.latencies_ms) if burst.latencies_ms else None


def _inverse_rate(burst: Burst) -> float | None:
    rate = burst.rows_per_s
    return 1 / rate if rate else None


def _round(value: float) -> float:
    return float(f"{value:.5g}")
