"""matrix.json: the figures of a matrix by cell, and over the seeds of each combination.

The keys are stable. ``docs/matrix.md`` explains them, and ``docs/matrix.schema.json`` is generated
from these classes (a test compares them).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from agentwire.evaluation.result import (
    AgentRecord,
    Comparison,
    DatasetRecord,
    Hardware,
    MethodRecord,
    Record,
    RecordFile,
    Settings,
    SubstitutionRecord,
)

SCHEMA_VERSION = 1
FILE = "matrix.json"

AxisValue: TypeAlias = str | int | float | bool
Axes = dict[str, AxisValue]


class CellBridge(Record):
    """The bridge that a cell measured."""

    name: str
    fingerprint: str = Field(description="sha256 of weights.safetensors")
    layer: int
    soft_tokens: int
    held_out_accuracy: float = Field(description="on the held-out training rows")
    recipe_differs: list[str] = Field(
        description="settings that differ between its card and the cell's `train:`"
    )


class CellRecord(Record):
    """One combination."""

    id: str
    axes: Axes
    status: Literal["done", "interrupted", "skipped", "pending"]
    reason: str | None = Field(description="why its bridge was not measured")
    folder: str | None = Field(description="of its run, inside this folder; None if it did not run")
    bridge: CellBridge | None
    dataset: DatasetRecord | None
    agents: dict[str, AgentRecord]
    settings: Settings | None
    methods: dict[str, MethodRecord]
    comparisons: list[Comparison] = Field([], description="as in result.json")


class SummaryRow(Record):
    """One method at one combination of axes, over its seeds."""

    axes: Axes = Field(description="axes that the method depends on, without the seed")
    method: str
    figure: Literal["accuracy", "em", "f1", "mean_of_tasks", "all_right"] = Field(
        description="of answers in words: em and f1; of a series: mean over its tasks, or rows "
        "that are right in every task"
    )
    seeds: list[int]
    mean: float | None = Field(description="mean accuracy over the seeds; None for random weights")
    std: float | None = Field(description="over the seeds (n - 1); None for fewer than two")
    lowest: float | None
    highest: float | None
    wilson95: tuple[float, float] | None = Field(description="of the mean accuracy over n rows")
    bootstrap95: tuple[float, float] | None = Field(
        None, description="of em and f1 instead of wilson95: bootstrap over rows"
    )
    n: int = Field(description="rows of each cell")
    cells: list[str]


class MatrixResult(RecordFile):
    """The content of matrix.json."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["matrix"] = "matrix"
    scenario: str
    run_id: str
    interrupted: bool
    started: str
    seconds: float = Field(description="of this session")
    command: str
    axes: dict[str, list[AxisValue]]
    substitutions: list[SubstitutionRecord]
    cells: list[CellRecord]
    summary: list[SummaryRow]
    versions: dict[str, str]
    hardware: Hardware
