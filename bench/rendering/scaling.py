"""How much one runner carries: what was measured, a model beside it, and the model's projection.

The model has three ceilings on the messages that a runner moves each second, and takes the lowest:

* the pairs: P times what one pair does alone,
* the runner: one core, since client and broker take turns in one interpreter,
* the cores of this machine, shared by runner and agents (only where agents are on it).

Costs are CPU times of a message. They are taken from one row of the measurement, and the others
test them.
"""

from __future__ import annotations

from typing import Any, Final

from rendering.markdown import Record, Records, provenance, table

Figures = dict[str, Any]
TEN_GIGABIT: Final = 10e9 / 8  # bytes a second, each way
COMPUTE_MS: Final = (10.0, 50.0, 200.0)
TITLES: Final = {
    "ipc": "pairs as processes of one machine (ipc)",
    "tcp": "pairs that join over tcp with CURVE keys, as from machines of their own",
    "ray": "pairs as Ray actors of one node (tcp, CURVE), Ray's own processes among the agents",
    "idle": "one busy pair beside idle ones",
    "gateway": "pairs behind one gateway, one text a request",
}


def owns(name: str, record: Record) -> bool:
    """A record of ``bench/scaling.py``."""
    return record.get("benchmark") == "scaling"


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_section(name, record) for name, record in records.items())


def modelled(found: Figures, one: Figures, cost: Figures, cores: int) -> float:
    """Messages a second that the model expects on this machine.

    Args:
        found: the row to be told; only its number of pairs is looked at.
        one: the figures of one pair alone.
        cost: the figures whose CPU times are taken.
        cores: of the machine.
    """
    ceilings = [found["pairs"] * one["messages_per_s"], 1000 / cost["runner_cpu_ms"]]
    if cost["agents_cpu_ms"] is not None:
        ceilings.append(1000 * cores / (cost["runner_cpu_ms"] + cost["agents_cpu_ms"]))
    return float(min(ceilings))


def most_pairs(
    compute_ms: float, cost: Figures, message_bytes: int, share: float
) -> tuple[int, float]:
    """How many pairs on machines of their own one runner carries.

    Args:
        compute_ms: that each agent of a pair takes for a batch.
        cost: the figures whose CPU times are taken.
        message_bytes: that cross the runner's network, once in and once out.
        share: of the ideal rate that one pair reaches alone.

    Returns:
        Pairs until a ceiling is reached, and messages a second there.
    """
    ceiling = min(1000 / cost["runner_cpu_ms"], TEN_GIGABIT / message_bytes)
    pairs = max(1, int(ceiling / (share * 1000 / compute_ms)))
    return pairs, min(ceiling, pairs * share * 1000 / compute_ms)


def _section(name: str, record: Record) -> str:
    ways = record["ways"]
    parts = [f"## How much one runner carries: {name}"]
    parts += [_way(title, ways[way], way) for way, title in TITLES.items() if way in ways]
    parts += ["### Beyond this machine", beyond(record)]
    return "\n\n".join(parts)


def beyond(record: Record) -> str:
    """What the model says of more machines, and of gateways."""
    ways = record["ways"]
    far = "tcp" if "tcp" in ways else "ipc"
    parts = [_projection(far, ways[far])] if far in ways else []
    if "gateway" in ways:
        best = max(found["rows_per_s"] for found in ways["gateway"]["figures"])
        cost = ways["gateway"]["figures"][-1]["runner_cpu_ms"]
        parts.append(
            f"One gateway process spends {cost:.2f} ms of CPU on a request: {1000 / cost:,.0f} "
            "requests a second with a core of its own, however many pairs are behind it. Here, "
            f"where clients and agents share the cores with it, it reached {best:,.0f}."
        )
    return "\n\n".join(parts)


def _way(title: str, way: Record, kind: str) -> str:
    found, settings = way["figures"], way["settings"]
    one, cores = found[0], way["hardware"]["cores"]
    facts = [*(f"- **{label}**" for label in way["labels"]), *provenance(way)]
    says = (
        f"{settings['rows_of_a_message']} rows a message, {settings['in_flight_of_a_pair']} "
        f"messages of a pair in flight, {settings['compute_ms']:g} ms of waiting in each agent for "
        f"a batch, {settings['seconds']:g} s for each line."
    )
    header = ["pairs", "messages/s", "rows/s", "p50 ms", "runner CPU ms", "agents CPU ms"]
    tested = kind in ("ipc", "tcp")
    rows = []
    for row in found:
        pairs = f"1 + {row['idle_pairs']} idle" if kind == "idle" else str(row["pairs"])
        agents = row["agents_cpu_ms"]
        line = [pairs, f"{row['messages_per_s']:,.1f}", f"{row['rows_per_s']:,.0f}"]
        line += [f"{row['p50_ms']:,.0f}", f"{row['runner_cpu_ms']:.2f}"]
        line.append("-" if agents is None else f"{agents:.2f}")
        if tested:
            expected = modelled(row, one, found[-1], cores)
            line.append(f"{expected:,.1f} ({row['messages_per_s'] / expected - 1:+.0%})")
        rows.append(line)
    if tested:
        header.append("model (and how far off)")
    return "\n\n".join(
        [f"### {title[0].upper()}{title[1:]}", "\n".join(facts), says, table(header, rows)]
    )


def _projection(way: str, measured: Record) -> str:
    settings, found = measured["settings"], measured["figures"]
    cost, rows_of = found[-1], settings["rows_of_a_message"]
    size = rows_of * settings["payload_bytes_of_a_row"]
    ideal = 1000 / settings["compute_ms"]
    share = min(1.0, found[0]["messages_per_s"] / ideal)
    rows = []
    for compute_ms in COMPUTE_MS:
        pairs, rate = most_pairs(compute_ms, cost, size, share)
        rows.append([f"{compute_ms:g}", f"{pairs:,}", f"{rate:,.0f}", f"{rate * rows_of:,.0f}"])
    cpu, wire = 1000 / cost["runner_cpu_ms"], TEN_GIGABIT / size
    says = (
        "**Projection, not measured**: pairs on machines of their own behind one runner, from the "
        f"`{way}` figures. A runner moves {cpu:,.0f} messages a second by its CPU and {wire:,.0f} "
        f"by a 10 Gb/s network ({size / 2**20:g} MiB in and out a message); a pair alone reaches "
        f"{share:.0%} of what its waiting allows."
    )
    header = ["ms a batch", "pairs until the runner is full", "messages/s", "rows/s"]
    return "\n\n".join([says, table(header, rows)])
