"""Records of ``agentwire bench`` as JSON. Times are milliseconds, rates are rows a second."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from agentwire.benchmark.plan import Benchmark, Kind
from agentwire.evaluation.result import Hardware, Record, RecordFile, SubstitutionRecord

SCHEMA_VERSION = 1


class Percentiles(Record):
    """Latency of a message, from call to answer."""

    p50: float
    p95: float
    p99: float
    n: int


class MeasurementRecord(Record):
    """One method at one batch size and text length."""

    kind: Kind
    method: str
    batch_size: int
    text_tokens: int
    in_flight: int
    latency_ms: Percentiles | None
    p50_ms_rounds: list[float] = Field(description="median latency of each round")
    stages_ms: dict[str, float] = Field(description="median of each stage")
    rows_per_s: float | None = Field(description="median over rounds; None for latency")
    rows_per_s_rounds: list[float]
    payload_bytes: int = Field(description="of one row on the bus")
    error: str = Field(default="", description="why figures are missing")


class BenchAgent(Record):
    """One agent process."""

    model: str
    weights: str
    dtype: str
    device: str
    threads: int | None
    fingerprint: str = ""


class _Provenance(RecordFile):
    schema_version: int = SCHEMA_VERSION
    started: str
    seconds: float
    interrupted: bool
    command: str
    labels: list[str] = Field(description="conditions that a reader must know")
    settings: dict[str, Any]
    figures: dict[str, float]
    versions: dict[str, str]
    hardware: Hardware


class BenchRecord(_Provenance):
    """Latency and throughput. ``figures`` is a flat map and needs no other part of the record."""

    benchmark: Benchmark
    scenario: str
    substitutions: list[SubstitutionRecord]
    agents: dict[str, BenchAgent]
    batches: dict[str, dict[str, dict[int, int]]] = Field(
        default_factory=dict,
        description="agent -> kind of work -> rows of a batch -> number of batches",
    )
    cells: list[MeasurementRecord]


class BusRecord(_Provenance):
    """The bus beside bare sockets; times in microseconds one way."""

    benchmark: Literal["bus"] = "bus"
    rounds: dict[str, list[dict[str, float]]]
