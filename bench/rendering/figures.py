"""Records that no other chapter knows: settings, and a flat map of figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rendering.markdown import Record, Records, described, provenance, table


class About(NamedTuple):
    """A kind of record: its heading, and how its figures are to be read."""

    title: str
    reading: str


KINDS = {
    "batch-invariance": About(
        "A row alone and in a batch",
        "Every row crossed the bridge twice, alone and in a batch, through processes and "
        "bus. Floating-point sums depend on their order, so scores (log-likelihoods, in "
        "nats) may differ in their last digits, and a prediction only where its best two "
        "labels score alike: *margin* is by how much the best one leads.",
    ),
    "hops": About(
        "What a message costs beside the devices",
        "Fake models whose devices take a fixed time: what is left of a message's latency "
        "without it is agents, broker and client. Milliseconds, medians over rounds; `queue` "
        "and `wire` are stages that the reply reports, `client` is what the caller waited "
        "beyond them.",
    ),
    "overhead": About(
        "Two processes and a bus against one process",
        "The same rows, batches and bridge, once through processes and bus and once with "
        "both models called in turn in one process with all threads; rounds alternate. "
        "`ratio_…` is bus to one process (above 1: the bus is faster), `…_agents_threads` "
        "the same against one process with as many threads as an agent has; `in_flight_n` is "
        "with n batches outstanding; `same_predictions` is a share of the rows.",
    ),
}
"""By the first part of a record's name."""


def owns(name: str, record: Record) -> bool:
    """Whatever has a flat map of figures."""
    return "figures" in record


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_figures(name, record) for name, record in records.items())


def _figures(name: str, record: Record) -> str:
    settings = record.get("settings", {})
    rows = [
        [key, f"{value:,.4g}" if isinstance(value, float) else str(value)]
        for key, value in record["figures"].items()
    ]
    facts = [f"- {_setting(key)}: {_value(value)}" for key, value in settings.items()]
    about = next((about for kind, about in KINDS.items() if name.startswith(kind)), None)
    parts = [
        f"## {about.title} ({name})" if about else f"## {name}",
        "\n".join([*facts, *provenance(record)]),
        about.reading if about else "",
        table(["figure", "value"], rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _setting(key: str) -> str:
    """``models`` here are always the small pair's."""
    return "models (stand-ins)" if key == "models" else key.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return described(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
