"""What the record makes of the jobs' results: studies, comparisons on the same rows, plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab.figures import study_figures
from lab.files import Folder
from lab.jobs import Job, planned
from lab.record import Results, collect_studies, minus_bridge

JOBS = [Job(name, "x") for name in ("bridge.sst2.forward", "universal", "layers.reverse",
                                    "sweep.sst2.reverse")]  # fmt: skip
LABELS = np.array([0, 1, 1, 0, 1, 0, 1, 0])
PAIR = {"task": "sst2", "direction": "forward"}


def run(job: str, method: str, predicted: np.ndarray[Any, Any]) -> dict[str, Any]:
    right = int((predicted == LABELS).sum())
    return {**PAIR, "job": job, "method": method, "seed": 0, "correct": right, "n": len(LABELS),
            "accuracy": right / len(LABELS), "seen": True}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A bridge that is always right, a universal one that errs once; layers from two jobs."""
    folder = Folder(tmp_path)
    erring = LABELS.copy()
    erring[2] = 0
    folder.write("bridge.sst2.forward",
                 {"status": "ok", "kind": "bridge",
                  "runs": [run("bridge.sst2.forward", "bridge", LABELS)]},
                 {"bridge.seed0": LABELS})  # fmt: skip
    folder.write("universal",
                 {"status": "ok", "kind": "universal",
                  "studies": {"universal": [run("universal", "universal", erring)]}},
                 {"universal.sst2.seed0": erring})  # fmt: skip
    layer = {"task": "sst2", "direction": "reverse", "layer": 10, "changes": {}}
    studied = {"layers": [{**layer, "train_rows": 9}]}
    folder.write("layers.reverse", {"status": "ok", "kind": "layers", "studies": studied})
    members = [{"layer": 10, "changes": {}}, {"layer": 10, "changes": {"dropout": 0.3}}]
    folder.write("sweep.sst2.reverse", {"status": "ok", "kind": "sweep", "task": "sst2",
                                        "direction": "reverse", "members": members})  # fmt: skip
    found = Results(folder, JOBS)
    found._labels["sst2"] = LABELS
    return found


def test_a_universal_bridge_is_compared_with_the_tasks_own_on_the_same_rows(
    results: Results,
) -> None:
    studies = collect_studies(results)
    (compared,) = minus_bridge(results, "universal", studies["universal"])
    assert compared["difference"] == -1 / 8
    assert (compared["mcnemar"]["only_first"], compared["mcnemar"]["only_second"]) == (0, 1)
    figures = study_figures(studies | {"universal_minus_bridge": [compared]})
    assert figures["universal.sst2.forward.mean"] == 7 / 8
    assert figures["universal.sst2.forward.minus_bridge.difference"] == -1 / 8


def test_predictions_that_are_not_those_that_were_counted_are_refused(results: Results) -> None:
    changed = results.runs["sst2", "forward", "bridge"][0] | {"correct": 3}
    with pytest.raises(ValueError, match="do not fit"):
        results.right(changed)


def test_layers_of_a_sweep_stand_beside_those_of_the_study(results: Results) -> None:
    studies = collect_studies(results)
    assert [found.get("train_rows") for found in studies["layers"]] == [9, None]
    assert [found["changes"] for found in studies["sensitivity"]] == [{"dropout": 0.3}]
    for found, held_out in zip(studies["layers"], (0.8, 0.9), strict=True):
        found["held_out_accuracy"] = held_out
    figures = study_figures({"layers": studies["layers"]})
    assert figures["sst2.reverse.layer10.held_out"] == 0.8
    assert figures["sst2.reverse.layer10.all_rows.held_out"] == 0.9


def test_a_plan_is_done_in_its_own_order() -> None:
    assert [job.name for job in planned(JOBS, ["universal", "bridge.sst2.forward"])] == [
        "universal",
        "bridge.sst2.forward",
    ]
    with pytest.raises(ValueError, match="no such job: nonsense"):
        planned(JOBS, ["universal", "nonsense"])
