"""matrix.json and its table: means over seeds, series, skipped cells."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from run_results import make_method, make_result

from agentwire.evaluation.matrix.report import print_matrix
from agentwire.evaluation.matrix.result import (
    CellBridge,
    CellRecord,
    MatrixResult,
    SummaryRow,
)
from agentwire.evaluation.matrix.summary import all_right, summary

ROOT = Path(__file__).resolve().parents[2]


def make_cell(id: str, axes: dict[str, Any], accuracy: float = 0.5, **changes: Any) -> CellRecord:
    run = make_result()
    method = make_method(accuracy=accuracy, correct=round(accuracy * 200), n=200)
    return CellRecord(
        id=id,
        axes=axes,
        status="done",
        reason=None,
        folder=f"cells/{id}",
        bridge=None,
        dataset=run.dataset.model_copy(update={"name": axes.get("task", "sst2")}),
        agents={},
        settings=run.settings,
        methods={"bridge": method},
    ).model_copy(update=changes)


def make_matrix(cells: list[CellRecord], rows: list[SummaryRow], **changes: Any) -> MatrixResult:
    run = make_result()
    axes: dict[str, list[Any]] = {}
    for cell in cells:
        for name, value in cell.axes.items():
            axes.setdefault(name, [])
            if value not in axes[name]:
                axes[name].append(value)
    return MatrixResult(
        scenario="sweep",
        run_id="one",
        interrupted=False,
        started=run.started,
        seconds=1.0,
        command="agentwire run scenarios/sweep.yaml",
        axes=axes,
        substitutions=run.substitutions,
        cells=cells,
        summary=rows,
        versions={},
        hardware=run.hardware,
    ).model_copy(update=changes)


def shown(result: MatrixResult) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_matrix(result, Path("runs/one"), console)
    printed = console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue()


def test_the_documented_schema_is_the_codes() -> None:
    documented = (ROOT / "docs" / "matrix.schema.json").read_text(encoding="utf-8")
    assert documented == MatrixResult.schema_text(), (
        "write it anew: python -c 'from agentwire.evaluation.matrix.result import MatrixResult; "
        'print(MatrixResult.schema_text(), end="")\' > docs/matrix.schema.json'
    )


def test_seeds_are_put_together(tmp_path: Path) -> None:
    cells = [
        make_cell(f"m{m}--seed{seed}", {"soft_tokens": m, "seed": seed}, accuracy)
        for m, seed, accuracy in ((4, 0, 0.5), (4, 1, 0.6), (8, 0, 0.9))
    ]
    four, eight = summary(cells, tmp_path)
    assert dict(four.axes) == {"soft_tokens": 4}
    assert (four.mean, four.seeds, four.lowest, four.highest) == (0.55, [0, 1], 0.5, 0.6)
    assert four.std is not None
    assert abs(four.std - 0.0707) < 1e-3
    assert four.wilson95 is not None
    assert four.wilson95[0] < 0.55 < four.wilson95[1]
    assert (eight.mean, eight.seeds, eight.std, eight.n) == (0.9, [0], None, 200)


def test_a_method_without_a_bridge_has_no_axis_of_the_bridge(tmp_path: Path) -> None:
    cell = make_cell("trec--m4", {"task": "trec", "soft_tokens": 4})
    cell = cell.model_copy(update={"methods": {"receiver_direct": make_method()}})
    (row,) = summary([cell], tmp_path)
    assert dict(row.axes) == {"task": "trec"}


def test_cells_without_figures_are_left_out(tmp_path: Path) -> None:
    empty = make_cell("m4", {"soft_tokens": 4}, methods={"bridge": make_method(n=0)})
    assert summary([empty, make_cell("m8", {"soft_tokens": 8}, methods={})], tmp_path) == []


def test_a_passkey_is_right_where_all_of_its_digits_are(tmp_path: Path) -> None:
    cells = []
    for task, right in (("passkey_1", [0, 1, 2]), ("passkey_2", [1, 2])):
        cells.append(make_cell(task, {"task": task, "soft_tokens": 16}))
        folder = tmp_path / "cells" / task
        folder.mkdir(parents=True)
        lines = [
            {"method": "bridge", "row": row, "label": "one", "predicted": "one" if ok else "two"}
            for row, ok in ((row, row in right) for row in range(4))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
    rows = summary(cells, tmp_path)
    figures = ["accuracy", "accuracy", "mean_of_tasks", "all_right"]
    assert [row.figure for row in rows] == figures
    assert rows[-2].mean == 0.5
    assert dict(rows[-1].axes) == {"task": "passkey", "soft_tokens": 16}
    assert (rows[-1].mean, rows[-1].n) == (0.5, 4)


def test_rows_that_one_part_lacks_do_not_count() -> None:
    assert all_right([{0: True, 1: True}, {1: True, 2: True}]) == {1: True}
    assert all_right([]) == {}


def test_the_table_shows_axes_methods_and_stand_ins(tmp_path: Path) -> None:
    cells = [
        make_cell(f"m{m}--seed{s}", {"soft_tokens": m, "seed": s}, 0.5 + s / 10)
        for m in (4, 8)
        for s in (0, 1)
    ]
    text = shown(make_matrix(cells, summary(cells, tmp_path)))
    assert "4 of 4 cells" in text
    assert "0.550" in text and "0.500 .. 0.600" in text
    assert "stand-ins: " in text
    assert "runs/one" in text


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    bridge = CellBridge(
        name="b",
        fingerprint="0" * 64,
        layer=1,
        soft_tokens=4,
        held_out_accuracy=0.5,
        recipe_differs=["steps"],
    )
    done = make_cell("m4", {"soft_tokens": 4}, bridge=bridge)
    skipped = make_cell("m8", {"soft_tokens": 8}, status="skipped", methods={}, dataset=None)
    text = shown(make_matrix([done, skipped], summary([done], tmp_path), interrupted=True))
    assert "1 of 2 cells were not measured because they have no bridge" in text and "m8" in text
    assert "bridges trained with settings other than `train:`: m4 (steps)" in text
    assert "INTERRUPTED" in text


def test_a_sample_is_marked(tmp_path: Path) -> None:
    cell = make_cell("trec", {"task": "trec"})
    assert cell.dataset is not None
    provenance = {"source": "sample", "note": "48 rows written for agentwire"}
    sample = cell.dataset.model_copy(update={"split": "sample", "provenance": provenance})
    cell = cell.model_copy(update={"dataset": sample})
    assert "SAMPLE: 48 rows written for agentwire" in shown(
        make_matrix([cell], summary([cell], tmp_path))
    )
