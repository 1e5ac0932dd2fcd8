"""``agentwire run`` of a matrix with real processes, the real bus and fake models."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from patience import COMMAND_S
from scenario_files import FAKE, write, write_rows
from test_run_integration import run, running, wait_for

from agentwire.evaluation.matrix.result import MatrixResult
from agentwire.telemetry.journal import read_lines

pytestmark = pytest.mark.integration

MATRIX = (
    FAKE
    + """\
  - {from: bob, to: ada}
task: {dataset: movie_snippets, path: rows.jsonl}
batch_size: 4
methods: [bridge, receiver_direct]
matrix: {wires: [ada->bob, bob->ada], seeds: [0, 1]}
"""
)
CELLS = ["ada-to-bob--seed0", "ada-to-bob--seed1", "bob-to-ada--seed0", "bob-to-ada--seed1"]


def only_matrix(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def predictions(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("runs/*/cells/*/predictions.jsonl"))
    return [record for file in files for record in read_lines(file)]


def test_a_matrix_is_one_folder_and_one_result(tmp_path: Path) -> None:
    write_rows(tmp_path, 12)
    write(tmp_path, MATRIX)
    done = run(tmp_path, "scenario.yaml", "--json", "--limit", "8")
    folder = only_matrix(tmp_path)
    result = MatrixResult.model_validate_json((folder / "matrix.json").read_text())
    assert json.loads(done.stdout) == json.loads((folder / "matrix.json").read_text())
    assert [cell.id for cell in result.cells] == CELLS
    assert {cell.status for cell in result.cells} == {"done"}
    assert all((folder / "cells" / name / "result.json").is_file() for name in CELLS)
    # What needs no bridge is measured once for each wire and dataset.
    assert [list(cell.methods) for cell in result.cells] == [
        ["bridge", "receiver_direct"],
        ["bridge"],
    ] * 2
    assert {cell.methods["bridge"].n for cell in result.cells} == {8}
    seeds = {(row.method, row.axes["wire"]): row.seeds for row in result.summary}
    assert seeds["bridge", "bob->ada"] == [0, 1]
    assert seeds["receiver_direct", "bob->ada"] == [0]
    # In the reverse cells the reverse wire is measured, and both wires are there.
    config = json.loads((folder / "cells" / CELLS[3] / "config.json").read_text())
    assert list(config["wires"]) == ["bob->ada", "ada->bob"]


def test_an_interrupted_matrix_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows = 150
    write_rows(tmp_path, rows)
    write(tmp_path, MATRIX.replace("batch_size: 4", "batch_size: 1"))
    arguments = ["scenario.yaml", "--limit", "0", "--methods", "bridge"]
    with running(tmp_path, *arguments) as process:
        wait_for(lambda: len(predictions(tmp_path)) >= rows + 20, "the second cell")
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    folder = only_matrix(tmp_path)
    assert f"--resume runs/{folder.name}" in errors
    result = json.loads((folder / "matrix.json").read_text())
    assert result["interrupted"] is True
    status = [cell["status"] for cell in result["cells"]]
    done = status.count("done")
    assert done and status == ["done"] * done + ["interrupted"] + ["pending"] * (3 - done)
    kept = {(r["request_id"]) for r in predictions(tmp_path)}

    again = run(tmp_path, *arguments, "--resume", f"runs/{folder.name}", "--json")
    assert f"{CELLS[0]}: bridge" in again.stderr and "(measured before)" in again.stderr
    result = json.loads(again.stdout)
    assert [cell["status"] for cell in result["cells"]] == ["done"] * 4
    records = predictions(tmp_path)
    assert len(records) == 4 * rows
    assert kept <= {r["request_id"] for r in records}


def test_another_matrix_is_not_resumed(tmp_path: Path) -> None:
    write_rows(tmp_path, 4)
    write(tmp_path, MATRIX.replace("seeds: [0, 1]", "seeds: [0]"))
    run(tmp_path, "scenario.yaml", "--methods", "bridge")
    write(tmp_path, MATRIX)
    done = run(tmp_path, "scenario.yaml", "--resume", str(only_matrix(tmp_path)), code=2)
    assert "cells was" in done.stderr and "Leave --resume out" in done.stderr
