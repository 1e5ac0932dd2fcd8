"""Text relay, and receivers that were trained to read it or the text."""

from __future__ import annotations

from rendering.compared import DASH, figure, outcome, title
from rendering.markdown import Record, table
from rendering.sample import listed

METHODS = ("text_relay", "lora_relay", "lora_reads_relay", "lora")


def section(record: Record) -> str:
    """A row a task and direction, and where the trained relay stands to the bridge; nothing where
    no receiver was trained on what is relayed."""
    figures, methods = record["figures"], record["methods"]
    shown = [method for method in METHODS if method in methods]
    if "lora_relay" not in shown:
        return ""
    rows, by_outcome = [], {"bridge": [], "": [], "baseline": []}  # type: ignore[var-annotated]
    for direction in record["directions"]:
        for task in record["tasks"]:
            name = f"{task}.{direction}"
            if f"{name}.lora_relay.mean" not in figures:
                continue
            entry = _entry(record, task, direction)
            rows.append(
                [
                    f"{title(task)}, {direction}",
                    *(figure(figures.get(f"{name}.{m}.mean")) for m in ("bridge", *shown)),
                    DASH if entry is None else _difference(entry),
                ]
            )
            if entry is not None:
                by_outcome[outcome(entry)].append(f"{title(task)} {direction}")
    header = ["task", "bridge", *(methods[method]["title"] for method in shown)]
    name = methods["lora_relay"]["title"]
    said = []
    if by_outcome["bridge"]:
        said.append(f"The bridge is above {name} on {listed(by_outcome['bridge'])}.")
    if by_outcome[""]:
        said.append(f"They cannot be told apart on {listed(by_outcome[''])}.")
    if by_outcome["baseline"]:
        said.append(f"**{name} beats the bridge on {listed(by_outcome['baseline'])}.**")
    return "\n\n".join(
        [
            "### Text relay, also with a receiver trained to read it",
            "\n".join(f"- {methods[m]['title']}: {methods[m]['about']}" for m in shown),
            table([*header, f"bridge minus {name}"], rows),
            " ".join(said),
        ]
    )


def _entry(record: Record, task: str, direction: str) -> Record | None:
    for entry in record.get("comparisons", []):
        if (entry["task"], entry["direction"], entry["second"]) == (task, direction, "lora_relay"):
            return dict(entry)
    return None


def _difference(entry: Record) -> str:
    return f"{entry['difference']:+.3f} ({entry['low95']:+.3f} .. {entry['high95']:+.3f})"
