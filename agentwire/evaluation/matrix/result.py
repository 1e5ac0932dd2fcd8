"""matrix.json: what a matrix measured, cell by cell, and over the seeds of each combination.

As with result.json the keys are stable; ``docs/matrix.md`` explains them, and
``docs/matrix.schema.json`` is generated from the classes below (a test keeps them equal).
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from agentwire.evaluation.result import (
    AgentRecord,
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

AxisValue = str | int | float | bool
Axes = dict[str, AxisValue]


class CellBridge(Record):
    """The bridge that a cell measured."""

    name: str
    fingerprint: str = Field(description="sha256 of weights.safetensors")
    layer: int
    soft_tokens: int
    held_out_accuracy: float = Field(description="on the training rows that chose the step")
    recipe_differs: list[str] = Field(
        description="settings in which its card and the cell's `train:` differ"
    )


class CellRecord(Record):
    """One combination."""

    id: str
    axes: Axes
    status: Literal["done", "interrupted", "skipped", "pending"]
    reason: str | None = Field(description="why its bridge was not measured")
    folder: str | None = Field(description="of its run, inside this one; None: it has none")
    bridge: CellBridge | None
    dataset: DatasetRecord | None
    agents: dict[str, AgentRecord]
    settings: Settings | None
    methods: dict[str, MethodRecord]


class SummaryRow(Record):
    """One method at one combination, over its seeds."""

    axes: Axes = Field(description="the seed left out; for a method without a bridge, what it uses")
    method: str
    figure: Literal["accuracy", "mean_of_tasks", "all_right"] = Field(
        description="of a series: the mean over its tasks; rows that are right in every task"
    )
    seeds: list[int]
    mean: float | None = Field(description="mean accuracy over the seeds; None: random weights")
    std: float | None = Field(description="over the seeds (n - 1); None for fewer than two")
    lowest: float | None
    highest: float | None
    wilson95: tuple[float, float] | None = Field(description="of the mean accuracy over n rows")
    n: int = Field(description="rows of each cell")
    cells: list[str]


class MatrixResult(RecordFile):
    """The whole of matrix.json."""

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


def matrix_schema() -> str:
    """The JSON schema of matrix.json, as docs/matrix.schema.json holds it."""
    schema = MatrixResult.model_json_schema(mode="serialization")
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
