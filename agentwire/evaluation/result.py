"""result.json: what a run measured, with everything needed to judge it.

The keys are stable: programs read them. ``docs/result.md`` explains each one, and
``docs/result.schema.json`` is generated from the classes below (a test keeps them equal).
Accuracies are fractions (0 to 1), times milliseconds unless a name says otherwise.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordFile(Record):
    """A record that is written to its own file."""

    def write(self, path: Path) -> None:
        """Writes the file atomically."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def schema_text(cls) -> str:
        """The JSON schema of the file, as ``docs/`` holds it."""
        schema = cls.model_json_schema(mode="serialization")
        return json.dumps(schema, indent=2, sort_keys=True) + "\n"


class SubstitutionRecord(Record):
    """A model or dataset that ran in place of the one that the scenario names."""

    kind: Literal["model", "dataset"]
    subject: str = Field(description="name of the agent; 'task' for the dataset")
    wanted: str
    used: str
    reason: str


class DatasetRecord(Record):
    """The rows that were scored."""

    name: str
    split: str
    rows: int = Field(description="rows of this run")
    rows_in_split: int
    row_sha256: str = Field(description="sha256 over the rows of this run, in order")
    provenance: dict[str, Any] = Field(description="source, licence, checksum")
    substitute_for: str | None = Field(description="the dataset that the scenario names")


class AgentRecord(Record):
    """One agent process."""

    pid: int
    model: str
    device: str
    fingerprint: str = Field(description="sha256 over the model's published files")
    dtype: str = ""
    restarts: int = 0


class BridgeRecord(Record):
    """The bridge of one wire."""

    wire: str
    name: str
    fingerprint: str = Field(description="sha256 of weights.safetensors")
    layer: int
    soft_tokens: int
    width: int


class Latency(Record):
    """Round trip of a row at the client, including the wait for its batch."""

    p50: float
    p95: float


class Channels(Record):
    """Rows by the channel of their message."""

    soft: int
    text: int


class AnswerFigures(Record):
    """The figures of one method on a task that is answered in words."""

    em: float = Field(description="fraction of exact matches; a failed row counts as wrong")
    em95: tuple[float, float] = Field(description="bootstrap interval of the mean")
    f1: float = Field(description="mean token F1; a failed row counts as 0")
    f1_95: tuple[float, float]
    faults: dict[str, int] = Field(description="answers that are empty, loops or garbage")
    prompt_tokens: float | None = Field(description="mean tokens that the answering model read")
    completion_tokens: float | None = Field(description="mean tokens that it generated")


class Comparison(Record):
    """One method minus another on the same rows, by paired bootstrap."""

    first: str
    second: str
    figure: Literal["em", "f1"]
    difference: float
    interval95: tuple[float, float]
    p_value: float
    n: int


class MethodRecord(Record):
    """The figures of one method."""

    label: str = Field(description="the models of the method, for people")
    accuracy: float | None = Field(
        description="None where weights are random; of answers in words, exact matches"
    )
    correct: int
    n: int = Field(description="rows with an outcome; a failed row counts as wrong")
    wilson95: tuple[float, float] | None
    latency_ms: Latency | None
    stages_ms: dict[str, float] = Field(description="mean per row; they add up to its latency")
    rows_per_s: float | None = Field(description="in this session; None if it measured no row")
    payload_bytes: float | None = Field(description="mean bytes of one row's message on the bus")
    channels: Channels
    reasons: dict[str, int] = Field(description="why rows went as text instead of soft tokens")
    errors: dict[str, int] = Field(description="rows without an answer by cause")
    cut: int = Field(0, description="rows whose text was longer than the method reads")
    answers: AnswerFigures | None = Field(None, description="of tasks answered in words")

    @property
    def main_figure(self) -> float | None:
        """F1 of answers in words, else the accuracy."""
        return self.answers.f1 if self.answers else self.accuracy


class Hardware(Record):
    """The machine of the run."""

    platform: str
    cpu: str
    cores: int
    memory_gb: float
    gpus: list[str]


class Settings(Record):
    """Settings that the figures depend on."""

    batch_size: int
    in_flight: int
    limit: int = Field(description="0: all rows")
    seed: int
    threads: dict[str, int | None]


class RunResult(RecordFile):
    """The content of result.json."""

    schema_version: int = SCHEMA_VERSION
    scenario: str
    run_id: str
    interrupted: bool
    started: str
    seconds: float
    command: str
    substitutions: list[SubstitutionRecord]
    dataset: DatasetRecord
    agents: dict[str, AgentRecord]
    bridges: list[BridgeRecord]
    methods: dict[str, MethodRecord]
    comparisons: list[Comparison] = Field([], description="of tasks answered in words")
    settings: Settings
    versions: dict[str, str]
    hardware: Hardware
