"""Computes result.json from predictions: the figures of each method and the machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import psutil

import agentwire
from agentwire.evaluation.answers import answer_figures, comparisons
from agentwire.evaluation.methods import MethodSpec
from agentwire.evaluation.plan import RunPlan
from agentwire.evaluation.predictions import Predictions
from agentwire.evaluation.result import (
    AgentRecord,
    BridgeRecord,
    Channels,
    DatasetRecord,
    Hardware,
    Latency,
    MethodRecord,
    RunResult,
    Settings,
    SubstitutionRecord,
)
from agentwire.scenario.inventory import Inventory
from agentwire.task.metrics import percentile, wilson_interval
from agentwire.telemetry.row_tally import RowTally

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyzmq", "msgpack", "safetensors")


def summarise(
    plan: RunPlan,
    predictions: Predictions,
    agents: Mapping[str, AgentRecord],
    rates: Mapping[str, float],
    *,
    started: str,
    seconds: float,
    interrupted: bool,
) -> RunResult:
    """The result of a run so far.

    Of this session are ``rates`` (rows per second), ``started`` (ISO time) and ``seconds``.
    """
    resolved, data = plan.resolved, plan.dataset
    substitutions = [SubstitutionRecord.model_validate(asdict(s)) for s in resolved.substitutions]
    instead_of = next((s.wanted for s in substitutions if s.kind == "dataset"), None)
    return RunResult(
        scenario=resolved.scenario.name,
        run_id=plan.run_id,
        interrupted=interrupted,
        started=started,
        seconds=round(seconds, 3),
        command=plan.command,
        substitutions=substitutions,
        dataset=DatasetRecord(
            name=data.name,
            split=data.split,
            rows=len(plan.rows),
            rows_in_split=len(data),
            row_sha256=plan.row_sha256,
            provenance=dict(data.provenance),
            substitute_for=instead_of,
        ),
        agents=dict(agents),
        bridges=[
            BridgeRecord(
                wire=name,
                name=wire.card.name,
                fingerprint=wire.card.weights_sha256,
                layer=wire.card.layer,
                soft_tokens=wire.card.soft_tokens,
                width=wire.card.width,
            )
            for name, wire in resolved.wires.items()
            if wire.card is not None
        ],
        methods={
            method.name: method_record(method, plan, predictions, rates.get(method.name))
            for method in plan.methods
        },
        comparisons=[]
        if _is_random(plan)
        else comparisons([method.name for method in plan.methods], predictions),
        settings=Settings(
            batch_size=resolved.scenario.batch_size,
            in_flight=resolved.scenario.in_flight,
            limit=plan.limit,
            seed=resolved.scenario.seed,
            threads={name: spec.threads for name, spec in resolved.agents.items()},
        ),
        versions=versions(),
        hardware=hardware(),
    )


def method_record(
    method: MethodSpec, plan: RunPlan, predictions: Predictions, rate: float | None
) -> MethodRecord:
    """The figures of one method, from its predictions."""
    tally, records = RowTally(), predictions.of(method.name)
    for record in records:
        tally.add(record)
    scored = tally.n > 0 and not _is_random(plan)
    latency = None
    if tally.latencies_ms:
        p50, p95 = (round(percentile(tally.latencies_ms, q), 3) for q in (50, 95))
        latency = Latency(p50=p50, p95=p95)
    return MethodRecord(
        label=method.describe(plan.resolved),
        accuracy=tally.correct / tally.n if scored else None,
        correct=tally.correct,
        n=tally.n,
        wilson95=wilson_interval(tally.correct, tally.n) if scored else None,
        latency_ms=latency,
        stages_ms={stage: round(ms, 3) for stage, ms in tally.stages_ms.items()},
        rows_per_s=None if rate is None else round(rate, 3),
        payload_bytes=tally.payload_bytes,
        channels=Channels(soft=tally.channels["soft"], text=tally.channels["text"]),
        reasons=dict(sorted(tally.reasons.items())),
        errors=dict(sorted(tally.errors.items())),
        cut=tally.cut,
        answers=answer_figures(records) if scored else None,
    )


def _is_random(plan: RunPlan) -> bool:
    return any(choice.weights == "random" for choice in plan.resolved.choices.values())


def versions() -> dict[str, str]:
    """Versions of Python, agentwire and the libraries that the figures depend on."""
    found = {"python": platform.python_version(), "agentwire": agentwire.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> Hardware:
    """This machine."""
    return Hardware(
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=_gpu_names(),
    )


def _gpu_names() -> list[str]:
    """Names of the GPUs, if torch is already imported."""
    torch = sys.modules.get("torch")
    count = Inventory.here().gpus() if torch else 0
    return [torch.cuda.get_device_name(i) for i in range(count)] if torch else []


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
