"""What the programs of bench/ share: command line, provenance, records, rows of a scenario."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentwire.config import Config
from agentwire.errors import InputError
from agentwire.evaluation.predictions import choose_rows
from agentwire.evaluation.summary import hardware, versions
from agentwire.scenario.resolve import Resolved
from agentwire.task.datasets import load_rows
from agentwire.task.rows import Example, rows_sha256

SCENARIO = Path(__file__).resolve().parent.parent / "scenarios" / "llama_to_mistral_sst2.yaml"


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--out``, described by a program's docstring."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the record to this file")
    return parser


def provenance() -> dict[str, Any]:
    """When, with which command, on what and with which versions."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware().model_dump(mode="json"),
        "versions": versions(),
    }


def write(record: dict[str, Any], out: Path | None) -> None:
    """Write the record to a file, or print it."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


def chosen_rows(resolved: Resolved, count: int, seed: int) -> tuple[list[Example], str]:
    """Rows of the scenario's data (0: all), and which ones they are in words.

    Raises:
        InputError: the scenario has no task.
    """
    if resolved.data is None:
        raise InputError("The scenario has no task.", hint="Name a scenario with a `task:`.")
    data = load_rows(resolved.data.dataset, resolved.data.split, config=Config.from_env())
    rows = [data.rows[i] for i in choose_rows(len(data), count, seed)]
    return rows, f"{data.name} {data.split}, {len(rows)} rows, sha256 {rows_sha256(rows)}"


def models_of(resolved: Resolved) -> dict[str, Any]:
    """Models, bridge and threads of a resolved scenario, for a record's settings."""
    wire = resolved.wire
    return {
        "models": {name: choice.model for name, choice in resolved.choices.items()},
        "bridge": f"{wire.bridge}, sha256 {wire.card.weights_sha256 if wire.card else ''}",
        "threads": {name: spec.threads for name, spec in resolved.agents.items()},
    }
