"""What the bus costs: the records of ``agentwire bench bus``."""

from __future__ import annotations

from rendering.markdown import Record, Records, provenance, table

PARTS = (("p50_us", "p50"), ("p99_us", "p99"), ("messages_per_s", "messages_per_s"))


def owns(name: str, record: Record) -> bool:
    """It says so."""
    return record.get("benchmark") == "bus"


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_section(name, record) for name, record in records.items())


def _section(name: str, record: Record) -> str:
    settings, figures = record["settings"], record["figures"]
    rows: list[list[str]] = []
    for kind in record["rounds"]:
        rows.append([kind, *(f"{figures[f'{kind}_{part}']:,.0f}" for part, _ in PARTS)])
        if kind.startswith("bus"):
            ratios = (figures[f"{kind}_to_bare_{name}"] for _, name in PARTS)
            rows.append([f"**{kind}, to bare**", *(f"**{ratio:.2f} x**" for ratio in ratios)])
    says = (
        f"{settings['payload_bytes']:,} bytes one way over {settings['transport']}, from one "
        "process through a second to a third: endpoints and broker, and a bare "
        "DEALER-ROUTER-DEALER program with frames of the same sizes, in "
        f"{settings['rounds']} alternating rounds of {settings['messages']} messages. Medians over "
        "rounds; a ratio is the median of the ratios within a round."
    )
    return "\n\n".join(
        [
            f"## The bus beside bare sockets: {name}",
            "\n".join([*(f"- **{label}**" for label in record["labels"]), *provenance(record)]),
            says,
            table(["", "p50 us", "p99 us", "messages/s"], rows),
        ]
    )
