"""Records that no other chapter knows: settings, and a flat map of figures."""

from __future__ import annotations

from rendering.markdown import Record, Records, provenance, table

TITLES = {
    "batch-invariance": "A row alone and in a batch",
    "hops": "What a message costs beside the devices",
    "overhead": "Two processes and a bus against one process",
}
"""By the first part of a record's name."""


def owns(name: str, record: Record) -> bool:
    """Whatever has a flat map of figures."""
    return "figures" in record


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_figures(name, record) for name, record in records.items())


def _figures(name: str, record: Record) -> str:
    facts = [f"- {key}: {value}" for key, value in record.get("settings", {}).items()]
    rows = [
        [key, f"{value:,.4g}" if isinstance(value, float) else str(value)]
        for key, value in record["figures"].items()
    ]
    lines = "\n".join([*facts, *provenance(record)])
    titled = (f"{title} ({name})" for kind, title in TITLES.items() if name.startswith(kind))
    return "\n\n".join([f"## {next(titled, name)}", lines, table(["figure", "value"], rows)])
