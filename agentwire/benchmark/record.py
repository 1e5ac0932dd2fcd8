"""The JSON of a benchmark: what was measured, on what, and with which command.

Times are milliseconds and rates are rows a second. ``figures`` is flat, so that a program (or a
table of results) needs no knowledge of the rest.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from agentwire.benchmark.plan import Benchmark, Kind
from agentwire.evaluation.result import Hardware, Part, SubstitutionRecord, WholeRecord

SCHEMA_VERSION = 1


class Percentiles(Part):
    """Of one message, from call to answer."""

    p50: float
    p95: float
    p99: float
    n: int


class CellRecord(Part):
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
    error: str = Field(default="", description="why there are no (more) figures")


class BenchAgent(Part):
    """One agent process."""

    model: str
    weights: str
    dtype: str
    device: str
    threads: int | None
    fingerprint: str = ""


class BenchRecord(WholeRecord):
    """The whole of it."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Benchmark
    scenario: str
    started: str
    seconds: float
    interrupted: bool
    command: str
    labels: list[str] = Field(description="what a reader must know before any figure")
    substitutions: list[SubstitutionRecord]
    agents: dict[str, BenchAgent]
    settings: dict[str, Any]
    batches: dict[str, dict[str, dict[int, int]]] = Field(
        default_factory=dict,
        description="agent -> kind of work -> rows of a batch -> how many it computed",
    )
    figures: dict[str, float]
    cells: list[CellRecord]
    versions: dict[str, str]
    hardware: Hardware


class BusRecord(WholeRecord):
    """What the bus costs beside bare sockets; times in microseconds one way."""

    schema_version: int = SCHEMA_VERSION
    benchmark: Literal["bus"] = "bus"
    started: str
    seconds: float
    interrupted: bool
    command: str
    labels: list[str] = Field(description="what a reader must know before any figure")
    settings: dict[str, Any]
    figures: dict[str, float]
    rounds: dict[str, list[dict[str, float]]]
    versions: dict[str, str]
    hardware: Hardware
