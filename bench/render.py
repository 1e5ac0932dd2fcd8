"""docs/results.md from the records: ``python bench/render.py``; ``--check`` compares only.

Every table names the command, hardware, models, data, seed and date of its record; no figure in the
document is written by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "results.md"

HEAD = """# Results

Made by `python bench/render.py` from the records in `bench/results/`; do not edit.

Every figure below was measured with **stand-ins** (small models, and where named stand-in data)
on the hardware named beside it. None was measured with Llama-3.1-8B and Mistral-7B. Accuracies
are fractions with 95 % Wilson intervals; times are milliseconds.
"""

Record = dict[str, Any]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render_run(record: Record) -> str:
    """One recorded run of a scenario (a result.json)."""
    data, settings = record["dataset"], record["settings"]
    instead = f" (stands in for {data['substitute_for']})" if data["substitute_for"] else ""
    facts = [
        f"- data: {data['name']} {data['split']}, {data['rows']:,} of {data['rows_in_split']:,} "
        f"rows{instead}",
        *(
            f"- {name}: {agent['model']}, {agent['dtype']}, on {agent['device']}"
            for name, agent in record["agents"].items()
        ),
        *(
            f"- bridge: {bridge['name']}, layer {bridge['layer']}, M = {bridge['soft_tokens']}, "
            f"d = {bridge['width']}, weights sha256 {bridge['fingerprint'][:12]}…"
            for bridge in record["bridges"]
        ),
        f"- batches of {settings['batch_size']}, {settings['in_flight']} in flight, "
        f"seed {settings['seed']}",
        *common(record),
    ]
    methods = [
        [
            name,
            f"{m['accuracy']:.4f}",
            f"{m['wilson95'][0]:.4f} .. {m['wilson95'][1]:.4f}",
            f"{m['correct']} / {m['n']}",
            f"{m['latency_ms']['p50']:,.0f}",
            f"{m['latency_ms']['p95']:,.0f}",
            f"{m['rows_per_s']:.1f}",
            f"{m['payload_bytes']:,.0f}",
            f"{m['channels']['soft']} / {m['channels']['text']}",
        ]
        for name, m in record["methods"].items()
    ]
    stages = sorted({stage for m in record["methods"].values() for stage in m["stages_ms"]})
    times = [
        [name, *(f"{m['stages_ms'].get(stage, 0):,.1f}" for stage in stages)]
        for name, m in record["methods"].items()
    ]
    return "\n\n".join(
        [
            f"## {record['scenario']} on {data['name']}",
            "\n".join(facts),
            table(
                ["method", "accuracy", "95 %", "right", "p50", "p95", "rows/s", "bytes a row",
                 "soft / text"],
                methods,
            ),
            "Mean milliseconds of a row by stage, waiting for its batch included:",
            table(["method", *stages], times),
        ]
    )  # fmt: skip


def render_figures(name: str, record: Record) -> str:
    """One recorded benchmark: a flat map of figures."""
    facts = [f"- {key}: {value}" for key, value in record.get("settings", {}).items()]
    figures = [
        [key, f"{value:,.4g}" if isinstance(value, float) else str(value)]
        for key, value in record["figures"].items()
    ]
    return "\n\n".join(
        [f"## {name}", "\n".join([*facts, *common(record)]), table(["figure", "value"], figures)]
    )


def common(record: Record) -> list[str]:
    """What every record must say about itself."""
    hardware = record["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        f"- hardware: {hardware if isinstance(hardware, str) else describe(hardware)}",
        f"- versions: {versions}",
        f"- date: {record['started'][:10]}; command: `{record['command']}`",
    ]


def describe(hardware: Record) -> str:
    """Hardware in one line."""
    return ", ".join(f"{key} {value}" for key, value in hardware.items() if value)


def document() -> str:
    """The whole document."""
    parts = [HEAD]
    for file in sorted(RECORDS.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        runs = "methods" in record
        parts.append(render_run(record) if runs else render_figures(file.stem, record))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    """Writes the document; with ``--check``, exits with 1 where it is not what would be written."""
    text = document()
    if "--check" in sys.argv[1:]:
        return 0 if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == text else 1
    DOCUMENT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
