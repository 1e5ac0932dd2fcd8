"""What embedding costs and carries: adapters, the gateway, and a graph of three agents."""

from __future__ import annotations

from typing import Any

from rendering.markdown import Record, Records, provenance, table

KINDS = ("embedding", "gateway_load", "three_agents")


def owns(name: str, record: Record) -> bool:
    """It says so."""
    return record.get("benchmark") in KINDS


def chapter(records: Records) -> str:
    """One section for each record, costs first."""
    ordered = sorted(records.items(), key=lambda item: KINDS.index(item[1]["benchmark"]))
    return "\n\n".join(SECTIONS[record["benchmark"]](name, record) for name, record in ordered)


def costs(record: Record) -> str:
    """Milliseconds a message by each way."""
    rows = [
        [name, f"{way['p50_ms']:.2f}", f"{way['added_p50_ms']:+.2f}", f"{way['p95_ms']:.2f}"]
        for name, way in record["ways"].items()
    ]
    return table(["way", "p50 ms", "beside the Python API", "p95 ms"], rows)


def graphs(record: Record) -> str:
    """The latent graph beside the text graph."""
    runs = record["graphs"]
    rows = [
        [name, *(_shown(runs[run][name]) for run in ("latent", "text"))] for name in runs["latent"]
    ]
    return table(["", "reader -> judge as soft tokens", "as text"], rows)


def paired(record: Record) -> str:
    """Who judged right where the other did not."""
    found = record["paired"]
    return (
        f"Judged right by soft tokens alone: {found['only latent right']} rows, by text alone: "
        f"{found['only text right']} (exact McNemar p {found['p']:.2g})."
    )


def answers(record: Record) -> str:
    """What clients under load were answered."""
    rows = [[name, f"{count:,}"] for name, count in record["statuses"].items()]
    different = "answers that differ from `agentwire run`"
    return table(["answer", "count"], [*rows, [different, f"{record[different]:,}"]])


def _costs(name: str, record: Record) -> str:
    says = (
        f"{record['messages']:,} messages with a label as the answer, one at a time, each by every "
        "way before the next."
    )
    return _section(f"What embedding costs: {name}", record, says, costs(record))


def _load(name: str, record: Record) -> str:
    says = (
        f"{record['clients']} clients for {record['seconds']:.0f} s, at most "
        f"{record['answered at once']} answered at once: {record['rows per second']} rows/s, "
        f"p50 {record['p50_ms']:,.0f} ms, p99 {record['p99_ms']:,.0f} ms."
    )
    return _section(f"The gateway under load: {name}", record, says, answers(record))


def _graphs(name: str, record: Record) -> str:
    says = (
        "The same three agents, prompts and rows; only what the reader hands to the judge differs. "
        + paired(record)
    )
    return _section(f"Three agents in a graph: {name}", record, says, graphs(record))


def _section(title: str, record: Record, says: str, shown: str) -> str:
    facts = [*(f"- **{label}**" for label in record["labels"]), *provenance(record)]
    return "\n\n".join([f"## {title}", "\n".join(facts), says, shown])


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:,.3f}".rstrip("0").rstrip(".")
    return str(value)


SECTIONS = {"embedding": _costs, "gateway_load": _load, "three_agents": _graphs}
