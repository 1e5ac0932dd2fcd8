"""Workers that share a folder: claims, results, and what a dead worker leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lab.files import Folder
from lab.jobs import Job, every_job

FIRST, SECOND = Job("first", "bridge", "sst2"), Job("second", "probe", "sst2", after=("first",))
JOBS = [FIRST, SECOND, Job("third", "direct", "trec", light=True)]


def test_names_are_unique_and_what_a_job_needs_comes_before_it() -> None:
    for prefer in ("forward", "reverse"):
        names = [job.name for job in every_job(prefer)]
        assert len(set(names)) == len(names)
        for place, job in enumerate(every_job(prefer)):
            assert set(job.after) <= set(names[:place]), job.name
    bridges = [job for job in every_job("reverse") if job.kind == "bridge"]
    assert [job.direction for job in bridges[:4]] == ["reverse"] * 4


def test_two_workers_never_take_the_same_job(tmp_path: Path) -> None:
    one, two = Folder(tmp_path), Folder(tmp_path)
    taken = [one.next(JOBS, "a", light=None), two.next(JOBS, "b", light=None)]
    assert taken == [FIRST, JOBS[2]]  # the second waits for the first
    assert one.next(JOBS, "a", light=None) is None
    one.write("first", {"status": "failed"})
    assert two.next(JOBS, "b", light=None) == SECOND  # with what it would use otherwise
    assert one.next(JOBS, "a", light=None) is None


def test_light_and_heavy_jobs_are_told_apart(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.next(JOBS, "a", light=True) == JOBS[2]
    assert folder.next(JOBS, "a", light=True) is None
    assert folder.next(JOBS, "a", light=False) == FIRST


def test_results_and_predictions_come_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.result("first") is None and folder.predictions("first") == {}
    folder.write("first", {"status": "ok"}, {"bridge.seed0": np.array([1, 0, 76])})
    assert folder.result("first") == {"status": "ok"}
    assert folder.predictions("first")["bridge.seed0"].tolist() == [1, 0, 76]
    assert not list(tmp_path.glob(".*part*"))


def test_a_job_over_which_a_worker_died_is_not_tried_again(tmp_path: Path) -> None:
    Folder(tmp_path).claim(FIRST, "a")
    again = Folder(tmp_path)
    again.bury("b", JOBS)  # another's work may still go on
    assert again.result("first") is None
    again.bury("a", JOBS)
    found = again.result("first")
    assert found is not None and found["status"] == "failed"
    assert [job.name for job in again.open_jobs(JOBS)] == ["second", "third"]


def test_predictions_that_do_not_fit_their_figures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab import record

    folder = Folder(tmp_path)
    run = {"task": "sst2", "direction": "forward", "method": "bridge", "seed": 0, "job": "first",
           "accuracy": 0.5, "correct": 1, "n": 2}  # fmt: skip
    folder.write("first", {"status": "ok", "runs": [run]}, {"bridge.seed0": np.array([1, 0])})
    results = record.Results(folder, [FIRST])
    monkeypatch.setattr(results, "labels", lambda task: np.array([1, 1]))
    assert results.right(run).tolist() == [True, False]
    monkeypatch.setattr(results, "labels", lambda task: np.array([1, 0]))
    with pytest.raises(ValueError, match="do not fit"):
        results.right(run)
