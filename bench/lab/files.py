"""Results on disk: one JSON file a job, its predictions beside it, and claims between workers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lab.jobs import Job

Predictions = dict[str, npt.NDArray[np.uint8]]


class Folder:
    """Where the workers of one run meet.

    A job is claimed by making a file that must not be there yet, so that two workers never take
    the same; its result appears in one step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a job; None: it has none yet."""
        file = self.path / f"{name}.json"
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def predictions(self, name: str) -> Predictions:
        """The predicted classes of a job's runs, by run."""
        file = self.path / f"{name}.npz"
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    def write(
        self, name: str, result: Mapping[str, Any], predictions: Mapping[str, Any] | None = None
    ) -> None:
        """Writes predictions first, then the result that tells of them."""
        if predictions:
            partial = self.path / f".{name}.part.npz"
            arrays = {key: np.asarray(value, dtype=np.uint8) for key, value in predictions.items()}
            np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
            os.replace(partial, self.path / f"{name}.npz")
        part = self.path / f".{name}.part"
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path / f"{name}.json")

    def claim(self, job: Job, worker: str) -> bool:
        """Whether this worker has the job now."""
        try:
            handle = os.open(self._claim(job.name), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(worker)
        return True

    def _claim(self, name: str) -> Path:
        return self.path / f".{name}.claim"

    def bury(self, worker: str, jobs: Sequence[Job]) -> None:
        """Jobs that an earlier process of this worker died over are failed: they may kill again."""
        for job in jobs:
            file = self._claim(job.name)
            if file.is_file() and file.read_text() == worker and self.result(job.name) is None:
                self.write(job.name, {"job": job.name, "status": "failed", "error": "worker died"})

    def next(self, jobs: Sequence[Job], worker: str, *, light: bool | None) -> Job | None:
        """The first job that can be done now, claimed; None: nothing at the moment."""
        for job in jobs:
            if light is not None and job.light is not light:
                continue
            if self._claim(job.name).exists() or self.result(job.name) is not None:
                continue
            if all(self.result(name) is not None for name in job.after) and self.claim(job, worker):
                return job
        return None

    def open_jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs without a result."""
        return [job for job in jobs if self.result(job.name) is None]

    def log(self, worker: str, text: str) -> None:
        """One line in the worker's log, with the time."""
        line = f"{time.strftime('%H:%M:%S')} {worker}: {text}"
        print(line, flush=True)
