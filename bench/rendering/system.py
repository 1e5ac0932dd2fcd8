"""Tables of the bus, scaling, embedding, engines, faults, endurance and training records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rendering.markdown import DASH, Record, flat, number, table

Figures = dict[str, Any]
TEN_GIGABIT: Final = 10e9 / 8  # bytes a second, each way
COMPUTE_MS: Final = (10.0, 50.0, 200.0)
FAULT_COUNTS: Final = ("rounds", "requests", "lost", "duplicated", "wrong")


def figures(record: Record) -> str:
    """A flat map of figures, as the record names them."""
    return table(["figure", "value"], [[k, flat(v)] for k, v in record["figures"].items()])


def bus(record: Record) -> str:
    found, rows = record["figures"], []
    for kind in record["rounds"]:
        parts = ("p50_us", "p99_us", "messages_per_s")
        rows.append([kind, *(f"{found[f'{kind}_{part}']:,.0f}" for part in parts)])
        if kind.startswith("bus"):
            ratios = (found[f"{kind}_to_bare_{part}"] for part in ("p50", "p99", "messages_per_s"))
            rows.append([f"**{kind}, to bare**", *(f"**{ratio:.2f} x**" for ratio in ratios)])
    return table(["", "p50 us", "p99 us", "messages/s"], rows)


# -- scaling --------------------------------------------------------------------------------------


def scaling(record: Record, way: str) -> str:
    """One way of connecting pairs; for ipc and tcp beside what the model expects."""
    found = record["ways"][way]["figures"]
    cores = record["ways"][way]["hardware"]["cores"]
    header = ["pairs", "messages/s", "rows/s", "p50 ms", "runner CPU ms", "agents CPU ms"]
    rows = []
    for row in found:
        pairs = f"1 + {row['idle_pairs']} idle" if way == "idle" else str(row["pairs"])
        line = [pairs, f"{row['messages_per_s']:,.1f}", f"{row['rows_per_s']:,.0f}"]
        line += [f"{row['p50_ms']:,.0f}", number(row["runner_cpu_ms"])]
        line.append(number(row["agents_cpu_ms"]))
        if way in ("ipc", "tcp"):
            expected = modelled(row["pairs"], found[0], found[-1], cores)
            line.append(f"{expected:,.1f} ({row['messages_per_s'] / expected - 1:+.0%})")
        rows.append(line)
    if way in ("ipc", "tcp"):
        header.append("model (measured against it)")
    return table(header, rows)


def modelled(pairs: int, one: Figures, cost: Figures, cores: int) -> float:
    """Messages a second that the model expects of pairs on this machine.

    Args:
        one: the figures of one pair alone.
        cost: the figures from which CPU times are taken.
    """
    ceilings = [pairs * one["messages_per_s"], 1000 / cost["runner_cpu_ms"]]
    if cost["agents_cpu_ms"] is not None:
        ceilings.append(1000 * cores / (cost["runner_cpu_ms"] + cost["agents_cpu_ms"]))
    return float(min(ceilings))


def most_pairs(
    compute_ms: float, cost: Figures, message_bytes: int, share: float
) -> tuple[int, float]:
    """How many pairs on machines of their own fill one runner, and messages a second there.

    Args:
        compute_ms: time that each agent of a pair takes for a batch.
        cost: the figures from which CPU times are taken.
        message_bytes: bytes of a message, which crosses the runner's network in and out.
        share: part of the ideal rate that one pair reaches alone.
    """
    ceiling = min(1000 / cost["runner_cpu_ms"], TEN_GIGABIT / message_bytes)
    pairs = max(1, int(ceiling / (share * 1000 / compute_ms)))
    return pairs, min(ceiling, pairs * share * 1000 / compute_ms)


def projection(record: Record, way: str) -> str:
    """Not measured: pairs on machines of their own, from the figures of one way."""
    settings, found = record["ways"][way]["settings"], record["ways"][way]["figures"]
    rows_of = settings["rows_of_a_message"]
    ideal = 1000 / settings["compute_ms"]
    share = min(1.0, found[0]["messages_per_s"] / ideal)
    rows = []
    for compute_ms in COMPUTE_MS:
        size = rows_of * settings["payload_bytes_of_a_row"]
        pairs, rate = most_pairs(compute_ms, found[-1], size, share)
        rows.append([f"{compute_ms:g}", f"{pairs:,}", f"{rate:,.0f}", f"{rate * rows_of:,.0f}"])
    return table(["ms a batch", "pairs until the runner is full", "messages/s", "rows/s"], rows)


# -- embedding ------------------------------------------------------------------------------------


def embedding(record: Record) -> str:
    """Milliseconds a message by each way into agentwire."""
    rows = [
        [name, f"{way['p50_ms']:.2f}", f"{way['added_p50_ms']:+.2f}", f"{way['p95_ms']:.2f}"]
        for name, way in record["ways"].items()
    ]
    return table(["way", "p50 ms", "added to the Python API", "p95 ms"], rows)


def gateway_load(record: Record) -> str:
    rows = [[name, f"{count:,}"] for name, count in record["statuses"].items()]
    for name in ("answers that differ from `agentwire run`", "rows per second", "p50_ms", "p99_ms"):
        rows.append([name.replace("_", " "), flat(record[name])])
    return table(["answer", "count"], rows)


def three_agents(record: Record) -> str:
    graphs = record["graphs"]
    rows = [
        [name, *(flat(graphs[graph][name]) for graph in ("latent", "text"))]
        for name in graphs["latent"]
    ]
    return table(["", "reader -> judge as soft tokens", "as text"], rows)


def engines(record: Record) -> str:
    """vLLM beside transformers, row by row."""
    rows = [
        [
            part.replace("-", " -> "),
            method.replace("_", " "),
            f"{found['other_label']} of {found['rows']:,}",
            f"{found['largest_difference']:.1e}",
            f"{found['accuracy']:.4f}",
            f"{found['accuracy_of_reference']:.4f}",
        ]
        for part, methods in record["figures"].items()
        for method, found in methods.items()
    ]
    header = ["engines", "method", "another label", "largest difference", "accuracy", "reference"]
    return table(header, rows)


# -- faults and endurance -------------------------------------------------------------------------


def faults(record: Record) -> str:
    found = record["figures"]
    rows = []
    for fault in (key.removesuffix("_rounds") for key in found if key.endswith("_rounds")):
        errors = record["errors"].get(fault, {})
        said = ", ".join(f"{code} {count:,}" for code, count in sorted(errors.items()))
        rows.append([fault, *(f"{found[f'{fault}_{what}']:,}" for what in FAULT_COUNTS), said])
    return table(["fault", "rounds", "requests", "lost", "twice", "wrong", "errors"], rows)


def load_phases(record: Record) -> str:
    """Rows a second of capacity and goodput, phase by phase."""
    capacities = record["phases"]["capacities_per_s"]
    goodputs = record["phases"]["goodputs_per_s"]
    rows = [
        ["capacity", *(f"{rate:,}" for rate in capacities)],
        ["goodput after it", *(f"{rate:,}" for rate in goodputs), DASH],
    ]
    return table(["rows/s", *(str(i + 1) for i in range(len(capacities)))], rows)


def fuzzing(record: Record) -> str:
    found = record["figures"]
    keys = ("inputs", "inputs_per_s", "features", "peak_rss_mb", "crashes")
    rows = [
        [target, *(f"{found[f'{target}_{key}']:,}" for key in keys)]
        for target in record["settings"]["targets"]
    ]
    return table(["target", "inputs", "inputs/s", "features covered", "peak MB", "crashes"], rows)


# -- training -------------------------------------------------------------------------------------


def train_step(record: Record) -> str:
    rows = []
    for count, run in record["runs"].items():
        states = run["states"]
        for batch, step in run["steps"].items():
            ms, rate = step.get("step_ms_in_a_row"), step.get("rows_per_s")
            rows.append(
                [
                    count,
                    batch,
                    step["error"] if ms is None else f"{ms:.1f}",
                    DASH if rate is None else f"{rate:,.0f}",
                    _gigabytes(states["peak_gib"]),
                    _gigabytes(step["peak_gib"]),
                    f"{states['rows_per_s']:,.0f}",
                ]
            )
    header = ["GPUs", "rows a step", "ms a step", "rows/s"]
    peaks = ["GB while states are read", "GB while steps run"]
    return table([*header, *peaks, "states read, rows/s"], rows)


def _gigabytes(gib: dict[str, float]) -> str:
    """Of each GPU, in their order."""
    return " + ".join(f"{value * 2**30 / 1e9:.1f}" for value in gib.values()) or DASH


TABLES: dict[str, Callable[..., str]] = {
    "figures": figures,
    "bus": bus,
    "scaling": scaling,
    "projection": projection,
    "embedding": embedding,
    "gateway-load": gateway_load,
    "three-agents": three_agents,
    "engines": engines,
    "faults": faults,
    "load-phases": load_phases,
    "fuzzing": fuzzing,
    "train-step": train_step,
}
