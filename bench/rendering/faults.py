"""The fault matrix: the record of ``make chaos``."""

from __future__ import annotations

from rendering.markdown import Record, Records, provenance, table

COUNTS = ("rounds", "requests", "lost", "duplicated", "wrong")


def owns(name: str, record: Record) -> bool:
    """It counts what was lost, by fault."""
    return "runner_killed_lost" in record.get("figures", {})


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_matrix(name, record) for name, record in records.items())


def _matrix(name: str, record: Record) -> str:
    figures = record["figures"]
    faults = [key.removesuffix("_rounds") for key in figures if key.endswith("_rounds")]
    rows = []
    for fault in faults:
        errors = record["errors"].get(fault, {})
        said = ", ".join(f"{code} {count:,}" for code, count in sorted(errors.items()))
        rows.append([fault, *(f"{figures[f'{fault}_{what}']:,}" for what in COUNTS), said])
    settings = record["settings"]
    says = (
        "Every fault at random moments, against real processes and real sockets; models are the "
        "fake backend, whose right answers are known. Wrong: another answer than in a run without "
        "faults, or an error that the fault does not excuse. Errors: those that it does "
        f"(docs/guarantees.md). {settings['minutes']} minutes, seed {settings['seed']}."
    )
    if "note" in settings:
        says += f" Note: {settings['note']}."
    head = ["fault", "rounds", "requests", "lost", "twice", "wrong", "errors"]
    lines = "\n".join(provenance(record))
    return "\n\n".join([f"## Faults: {name}", lines, says, table(head, rows)])
