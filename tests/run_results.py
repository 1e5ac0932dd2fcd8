"""A run result with values in every field."""

from __future__ import annotations

from typing import Any

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


def make_method(**changes: Any) -> MethodRecord:
    return MethodRecord(
        label="smollm2-135m-instruct -> 8 soft tokens -> gemma-3-270m",
        accuracy=0.865,
        correct=173,
        n=200,
        wilson95=(0.811, 0.906),
        latency_ms=Latency(p50=412.3, p95=498.1),
        stages_ms={
            "tokenize": 1.2, "encode": 150.1, "bridge": 4.1, "queue": 120.0, "decode": 131.0,
            "wire": 2.5,
        },
        rows_per_s=64.2,
        payload_bytes=10240.0,
        channels=Channels(soft=200, text=0),
        reasons={},
        errors={},
    ).model_copy(update=changes)  # fmt: skip


def make_result(**changes: Any) -> RunResult:
    relay = make_method(
        label="smollm2-135m-instruct -> its own words -> gemma-3-270m",
        accuracy=0.59,
        correct=118,
        wilson95=(0.52, 0.656),
        latency_ms=Latency(p50=8412.3, p95=9498.1),
        stages_ms={"tokenize": 1.2, "generate": 7900.0, "queue": 120.0, "decode": 300.0, "wire": 3},
        payload_bytes=187.3,
        channels=Channels(soft=0, text=200),
    )
    return RunResult(
        scenario="llama_to_mistral_sst2",
        run_id="20260101-120000-llama_to_mistral_sst2",
        interrupted=False,
        started="2026-01-01T12:00:00+00:00",
        seconds=61.5,
        command="agentwire run scenarios/llama_to_mistral_sst2.yaml",
        substitutions=[
            SubstitutionRecord(
                kind="model",
                subject="llama",
                wanted="meta-llama/Llama-3.1-8B-Instruct",
                used="smollm2-135m-instruct",
                reason="cuda:0 is not there (GPUs here: none), and its weights are not here",
            ),
            SubstitutionRecord(
                kind="dataset",
                subject="task",
                wanted="sst2",
                used="movie_snippets",
                reason="AGENTWIRE_DATA is not set; the hub needs `pip install '.[hub]'`",
            ),
        ],
        dataset=DatasetRecord(
            name="movie_snippets",
            split="test",
            rows=200,
            rows_in_split=1234,
            row_sha256="ab" * 32,
            provenance={"source": "registry"},
            substitute_for="sst2",
        ),
        agents={
            "llama": AgentRecord(
                pid=41, model="smollm2-135m-instruct", device="cpu", fingerprint="cd" * 32
            ),
            "mistral": AgentRecord(
                pid=42, model="gemma-3-270m", device="cpu", fingerprint="ef" * 32
            ),
        },
        bridges=[
            BridgeRecord(
                wire="llama->mistral",
                name="smollm2-135m-instruct--gemma-3-270m--movie_snippets",
                fingerprint="12" * 32,
                layer=15,
                soft_tokens=8,
                width=640,
            )
        ],
        methods={
            "bridge": make_method(
                channels=Channels(soft=198, text=2), reasons={"bad_payload": 2}
            ),
            "text_relay": relay,
            "receiver_direct": make_method(
                label="gemma-3-270m reads the text itself",
                accuracy=None,
                wilson95=None,
                latency_ms=Latency(p50=231.4, p95=260.0),
                stages_ms={"tokenize": 1.0, "queue": 90.0, "decode": 139.0, "wire": 1.4},
                channels=Channels(soft=0, text=199),
                errors={"deadline": 1},
                payload_bytes=112.0,
            ),
            "sender_direct": make_method(
                n=0, correct=0, accuracy=None, wilson95=None, latency_ms=None, stages_ms={},
                rows_per_s=None, payload_bytes=None, channels=Channels(soft=0, text=0),
            ),
        },
        settings=Settings(
            batch_size=16, in_flight=2, limit=200, seed=0, threads={"llama": 1, "mistral": 1}
        ),
        versions={"python": "3.11.7"},
        hardware=Hardware(platform="Linux", cpu="some", cores=2, memory_gb=24.0, gpus=[]),
    ).model_copy(update=changes)  # fmt: skip
