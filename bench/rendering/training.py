"""What one step of training costs: the records of ``bench/train_step.py``, on one and more GPUs."""

from __future__ import annotations

from rendering.markdown import Record, Records, provenance, table


def owns(name: str, record: Record) -> bool:
    """A record of steps."""
    return name.startswith("train-step") and "runs" in record


def chapter(records: Records) -> str:
    """One table of all records, which each say where they were made."""
    rows = [row for record in records.values() for row in _rows(record)]
    head = ["GPUs", "rows a step", "ms a step", "rows/s", "GB at the peak", "states read, rows/s"]
    facts = [fact for name, record in records.items() for fact in _facts(name, record)]
    says = (
        "A step is the bridge, the frozen receiver forward and backward, and the optimiser, in one "
        "captured graph; the frozen sender's states are read once, before. With one GPU both "
        "models lie on it while that is done; with two each has its own, and the step runs on the "
        "receiver's: a second GPU makes room, not speed. Times are of steps in a row; GB are the "
        "most that torch had allocated, by GPU: while states are read / while steps run."
    )
    return "\n\n".join(["## Training: one step", "\n".join(facts), says, table(head, rows)])


def _facts(name: str, record: Record) -> list[str]:
    s = record["settings"]
    return [
        f"- {name}: **{record['label']}**; {s['sender']} up to layer {s['layer']}, texts of "
        f"{s['text_tokens']} tokens; {s['receiver']}, M = {s['soft_tokens']}, prompt of "
        f"{s['prompt_tokens']} tokens; bridge of width {s['hidden']}; bfloat16",
        *provenance(record),
    ]


def _rows(record: Record) -> list[list[str]]:
    rows = []
    for count, run in record["runs"].items():
        states = run["states"]
        for batch, step in run["steps"].items():
            ms = step.get("step_ms_in_a_row")
            rate = step.get("rows_per_s")
            rows.append(
                [
                    count,
                    batch,
                    step["error"] if ms is None else f"{ms:.1f}",
                    "-" if rate is None else f"{rate:,.0f}",
                    f"{_peaks(states['peak_gib'])} / {_peaks(step['peak_gib'])}",
                    f"{states['rows_per_s']:,.0f}",
                ]
            )
    return rows


def _peaks(gib: dict[str, float]) -> str:
    """Gigabytes of each GPU, in their order."""
    return " + ".join(f"{value * 2**30 / 1e9:.1f}" for value in gib.values()) or "-"
