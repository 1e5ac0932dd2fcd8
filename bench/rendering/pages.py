"""Parts of pages that stand between two markers: made from the records, never written by hand.

README's accuracies have a module of their own (``readme``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rendering import embedding, fan_in, scaling
from rendering.markdown import Record, Records, described, replaced

Block = Callable[[Record], str]


def measured(record: Record) -> str:
    """When, how and where, in one sentence."""
    return (
        f"Measured {record['started'][:10]} with `{record['command']}` on "
        f"{described(record['hardware'])}."
    )


def costs(record: Record) -> str:
    """What each way adds to a message."""
    ways = record["ways"]
    added = {name: way["added_p50_ms"] for name, way in ways.items()}
    adapters = [ms for name, ms in added.items() if name.endswith("adapter")]
    says = [f"{record['messages']:,} messages by each way."]
    if adapters:
        says.append(f"Adapters add {min(adapters):+.1f} to {max(adapters):+.1f} ms,")
    says.append(f"the gateway {added['gateway']:+.1f} ms (HTTP and JSON both ways).")
    says.append(measured(record))
    return "\n\n".join([embedding.costs(record), " ".join(says)])


def graphs(record: Record) -> str:
    """The three agents' graph, both ways."""
    return "\n\n".join(
        [
            embedding.graphs(record),
            f"{embedding.paired(record)} {'; '.join(record['labels'])}. {measured(record)}",
        ]
    )


PARTS: Final[dict[str, tuple[str, Callable[[str, Record], bool], Block]]] = {
    "docs/scaling.md": ("projection", scaling.owns, scaling.beyond),
    "docs/topologies.md": ("fan-in", fan_in.owns, fan_in.worth),
    "docs/embedding/README.md": (
        "costs",
        lambda name, record: record.get("benchmark") == "embedding",
        costs,
    ),
    "docs/embedding/langchain.md": (
        "three agents",
        lambda name, record: record.get("benchmark") == "three_agents",
        graphs,
    ),
}
"""By page: the name of its part, the record that it is made from, and how."""


def renewed(page: str, text: str, records: Records) -> str:
    """A page with its part made again.

    Args:
        page: one of ``PARTS``.
        text: the page as it is.

    Raises:
        ValueError: the markers are not there, once each and in order; or there is no record.
    """
    name, owns, block = PARTS[page]
    found = [record for stem, record in records.items() if owns(stem, record)]
    if not found:
        raise ValueError(f"{page} has a part made from a record that is not there")
    begin, end = f"<!-- {name}: made by bench/render.py -->", f"<!-- end of {name} -->"
    return replaced(text, begin, end, block(found[0]))
