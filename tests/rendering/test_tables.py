"""What tables show of a record, and what they do not decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rendering import accuracy, speed, studies, system
from rendering.markdown import Record, source
from rendering.sample import Sample, difference

NAMES = {"task": "sst2", "direction": "forward"}


def comparison(second: str, value: float, half: float, p: float = 0.0001) -> dict[str, Any]:
    ends = {"low95": value - half, "high95": value + half}
    mcnemar = {"only_first": 3, "only_second": 1, "p_value": p}
    return {**NAMES, "second": second, "difference": value, **ends, "mcnemar": mcnemar}


@pytest.fixture
def record() -> Record:
    figures: dict[str, float] = {}
    for method, mean in (("bridge", 0.876), ("probe", 0.84), ("lora", 0.91), ("zero", 0.99)):
        name = f"sst2.forward.{method}"
        figures |= {f"{name}.mean": mean, f"{name}.std": 0.004, f"{name}.seeds": 3}
        figures |= {f"{name}.wilson95_low": mean - 0.02, f"{name}.wilson95_high": mean + 0.02}
    kinds = {"bridge": "bridge", "probe": "baseline", "lora": "baseline", "zero": "control"}
    return {
        "figures": figures,
        "tasks": {"sst2": {"rows": 872, "held_out_rows": 1000}},
        "directions": {"forward": {"sender": "small-a", "receiver": "big-b"}},
        "methods": {name: {"title": name.title(), "kind": kind} for name, kind in kinds.items()},
        "comparisons": [comparison("probe", 0.04, 0.01), comparison("lora", -0.03, 0.01)],
    }


def test_the_best_method_is_bold_and_a_control_never_is(record: Record) -> None:
    shown = accuracy.methods(record, "forward")
    assert "**0.910 ± 0.004 (0.890 .. 0.930)**" in shown
    assert "| Zero | control | 0.990" in shown


@pytest.mark.parametrize(
    ("value", "half", "p", "shown"),
    [
        (0.04, 0.01, 0.0001, "| +0.040 (+0.030 .. +0.050), p < 0.001 |"),
        (-0.04, 0.01, 0.2, "| **-0.040 (-0.050 .. -0.030), p = 0.200** |"),
        (0.01, 0.02, 0.0001, "| *+0.010 (-0.010 .. +0.030), p < 0.001* |"),
        (0.04, 0.01, 0.2, "| *+0.040 (+0.030 .. +0.050), p = 0.200* |"),
    ],
)
def test_marks_of_a_difference(
    record: Record, value: float, half: float, p: float, shown: str
) -> None:
    record["comparisons"] = [comparison("lora", value, half, p)]
    assert shown in accuracy.differences(record, "forward")


def test_readme_shows_the_best_baseline_bold_where_it_is_better(record: Record) -> None:
    assert "| 0.876 | **Lora 0.910** |" in accuracy.accuracies(record)
    record["comparisons"] = [comparison("lora", -0.01, 0.02)]
    assert "| 0.876 | Lora 0.910 |" in accuracy.accuracies(record)


def test_a_difference_of_samples_knows_rows_and_seeds() -> None:
    one, other = Sample((0.90, 0.92), 1000), Sample((0.80,), 1000)
    assert difference(one, other) == "+0.110 ± 0.036"
    assert str(one) == "0.910 ± 0.014"
    assert Sample((0.8,)).margin == 0.0


def test_settings_are_compared_with_the_unchanged_run(record: Record) -> None:
    base = {**NAMES, "name": "base", "changes": {}, "held_out_accuracy": 0.9, "loss": 0.2}
    rate = {"learning_rate": 0.001}
    changed = {**base, "name": "learning_rate=0.001", "changes": rate, "held_out_accuracy": 0.8}
    shown = studies.settings(
        record | {"studies": {"sensitivity": [base, changed]}}, "sensitivity", "sst2", "forward"
    )
    assert "| base | 0.900 | 0.200 | – |" in shown
    assert "| learning_rate 0.001 | 0.800 | 0.200 | -0.100 ± 0.031 |" in shown


def test_layers_compare_only_runs_with_as_many_training_rows(record: Record) -> None:
    runs = [
        {**NAMES, "layer": 2, "held_out_accuracy": 0.8, "train_rows": 100},
        {**NAMES, "layer": 1, "held_out_accuracy": 0.7, "train_rows": 100},
        {**NAMES, "layer": 3, "held_out_accuracy": 0.9},
    ]
    shown = studies.layers(record | {"studies": {"layers": runs}}, "forward", "100")
    assert shown.splitlines()[2:] == ["| 1 | 0.700 | – |", "| 2 | 0.800 | – |"]


@pytest.mark.parametrize(
    ("pairs", "agents", "expected"), [(2, 4.0, 20.0), (64, 4.0, 400.0), (640, None, 1000.0)]
)
def test_the_lowest_ceiling_of_the_scaling_model_holds(
    pairs: int, agents: float | None, expected: float
) -> None:
    cost = {"runner_cpu_ms": 1.0, "agents_cpu_ms": agents}
    assert system.modelled(pairs, {"messages_per_s": 10.0}, cost, cores=2) == expected


def test_pairs_until_the_runner_or_the_network_is_full() -> None:
    cost = {"runner_cpu_ms": 1.0}
    assert system.most_pairs(10.0, cost, 1000, 1.0) == (10, 1000.0)
    assert system.most_pairs(10.0, cost, 12_500_000, 1.0) == (1, 100.0)


@pytest.mark.parametrize(("value", "shown"), [(10.0, "10.0 ms"), (12.0, "**12.0 ms**")])
def test_a_missed_goal_is_bold(monkeypatch: pytest.MonkeyPatch, value: float, shown: str) -> None:
    goal = speed.Goal("p50", "here", "p50", 10.0, "{:.1f} ms", least=False)
    monkeypatch.setattr(speed, "GOALS", (goal,))
    assert f"| at most 10.0 ms | {shown} |" in speed.goals({"here": {"figures": {"p50": value}}})


def test_the_source_names_record_command_machine_and_conditions() -> None:
    hardware = {"cores": 2, "cpu": "AMD EPYC", "memory_gb": 23.5, "gpus": ["H100", "H100"]}
    made = {"started": "2026-11-25T10:00:00", "command": "run me", "labels": ["busy"]}
    shown = source({"ways": {"ipc": made}, "hardware": hardware}, "scaling-cpu", "ways", "ipc")
    assert shown == (
        "Record: `bench/results/scaling-cpu.json`, 2026-11-25, `run me`, on 2 x H100, 2 cores of "
        "AMD EPYC, 24 GB.\n\n- busy"
    )


def test_pictures_of_studies(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from render import RECORDS, read_records

    made = studies.draw(read_records(RECORDS)["accuracy-small"], tmp_path)
    assert [file.name for file in made] == [
        "soft-tokens-banking77.svg",
        "soft-tokens-banking77.png",
        "layers-sst2.svg",
        "layers-sst2.png",
    ]
    assert all(file.stat().st_size > 1000 for file in made)
