"""What is measured, and in which order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from agentwire.benchmark.plan import Measurement, measurements_of, turns
from agentwire.errors import ScenarioError
from agentwire.scenario.load import load_scenario
from agentwire.spec.scenario import BenchPlan

PLAN = BenchPlan(
    prompt_tokens=4,
    batch_sizes=[4, 1],
    text_tokens=[48, 256],
    relay_batch_sizes=[4],
    methods=["bridge", "receiver_direct", "text_relay", "in_process"],
    length_batch=2,
)


def test_methods_are_compared_at_the_same_size_and_length() -> None:
    groups = measurements_of(PLAN, "all")
    for group in groups:
        assert len({(c.kind, c.batch_size, c.text_tokens) for c in group}) == 1
        assert len({c.method for c in group}) == len(group)
    shape = [(g[0].kind, g[0].batch_size, g[0].text_tokens, len(g)) for g in groups]
    assert shape == [
        ("latency", 1, 48, 4),
        ("latency", 1, 256, 2),
        ("throughput", 1, 48, 3),  # text relay is asked for at 4 alone
        ("throughput", 4, 48, 4),
        ("throughput", 2, 256, 2),
    ]


def test_latency_and_throughput_are_parts_of_all() -> None:
    parts = measurements_of(PLAN, "latency") + measurements_of(PLAN, "throughput")
    assert parts == measurements_of(PLAN, "all")


def test_every_round_holds_every_cell_once_and_begins_a_group_with_another_method() -> None:
    groups = measurements_of(PLAN, "all")
    order = list(turns(groups, 4))
    cells = [cell for group in groups for cell in group]
    for number in range(4):
        assert Counter(c for r, c in order if r == number) == Counter(cells)
    first: list[Measurement] = [
        next(c for r, c in order if r == n and c in groups[0]) for n in range(4)
    ]
    assert [c.method for c in first] == PLAN.methods


def test_a_group_stays_together() -> None:
    """Methods that are compared are measured one after the other, not a round apart."""
    groups = measurements_of(PLAN, "throughput")
    order = [cell for r, cell in turns(groups, 3) if r == 2]
    sizes = [(c.batch_size, c.text_tokens) for c in order]
    assert len([1 for a, b in pairwise(sizes) if a != b]) == len(groups) - 1


@pytest.mark.parametrize(
    "values",
    [
        {"batch_sizes": []},
        {"batch_sizes": [0]},
        {"batch_sizes": [257]},
        {"text_tokens": [0]},
        {"methods": ["bridge", "telepathy"]},
        {"rounds": 0},
        {"seconds": 0},
        {"in_flight": 17},
        {"unknown": 1},
    ],
)
def test_the_schema_refuses(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BenchPlan.model_validate(values)


def test_a_mistyped_key_names_its_line_and_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(
        "name: x\nagents:\n  a: {model: m}\n  b: {model: n}\nwires: [{from: a, to: b}]\n"
        "bench:\n  on_cpu:\n    batch_size: [1]\n"
    )
    with pytest.raises(ScenarioError, match=r"scenario.yaml:8: unknown key 'bench.on_cpu.batch_si"):
        load_scenario(file)


def test_the_shipped_scenario_covers_both_machines() -> None:
    root = Path(__file__).resolve().parents[2]
    bench = load_scenario(root / "scenarios" / "throughput.yaml").bench
    assert bench.batch_sizes == [1, 2, 4, 8, 16, 32, 64, 128]
    assert bench.text_tokens == [48, 128, 256, 512]
    assert (bench.prompt_tokens, bench.generated_tokens) == (24, 50)
    assert bench.on_cpu is not None and bench.on_cpu.task == "sst2"
    assert max(bench.on_cpu.batch_sizes) == 32
