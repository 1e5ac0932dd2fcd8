"""Every kind of job once, with tiny random models: that it runs, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from lab import bridges, jobs, search, soft_tokens, studies, together, world
from lab.files import Folder
from lab.jobs import Job, every_job
from lab.work import KINDS, do

from agentwire.bridge.store import verify
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.task.datasets import Dataset
from agentwire.task.definitions import load_definition
from agentwire.task.holdout import held_out_split
from agentwire.task.rows import Example

pytestmark = pytest.mark.integration

NEEDS_DOWNLOAD = {"encoder"}


class TinyWorld(world.World):
    """Tiny models, and made-up reviews under the name of every task."""

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(torch.device("cpu"), quick=True)
        self._folders = models

    def model(self, name: str, dtype: str = "float32", random: int | None = None) -> Any:
        key = (name, dtype, random)
        if key not in self._models:
            spec: AgentSpec = tiny.spec("x", self._folders[name])
            backend = TransformersBackend.load(
                spec.model_copy(update={"model": name}), lambda stage, fraction: None
            )
            if random is not None:
                backend.model = self._untrained(backend, random)
            self._models[key] = backend
        return self._models[key]

    def rows(self, task: str) -> world.Rows:
        if task not in self._rows:
            known = load_definition("sst2")
            split = [
                Dataset(task, name, tuple(Example(*row) for row in tiny.sentences(n, seed)),
                        known.labels, {"source": "folder", "location": "x", "sha256": "0" * 64})
                for name, n, seed in (("train", 120, 1), ("test", 24, 2))
            ]  # fmt: skip
            labels = load_definition("emotion").labels if task == "emotion" else known.labels
            train, held_out = held_out_split(split[0], 16, 0)
            self._rows[task] = world.Rows(task, known.spec(), labels, train, held_out, split[1])
        return self._rows[task]


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_gemma: Path
) -> dict[str, dict[str, Any]]:
    """The result of the first job of each kind, by kind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, layers in (("LAYERS", (1, 2)), ("ALL_LAYERS", (1, 3)), ("BASE_LAYER", 2)):
            both = {"forward": layers, "reverse": layers}
            for module in (jobs, bridges, studies, together):
                if hasattr(module, name):
                    patch.setattr(module, name, both)
        small = bridges.BASE.model_copy(update={"hidden": 16, "heads": 2})
        patch.setattr(bridges, "BASE", small)
        for module in (studies, soft_tokens, together):
            patch.setattr(module, "BASE", small)
        patch.setattr(search, "CANDIDATES", {"as it is": {}, "16 soft tokens": {"soft_tokens": 16}})
        patch.setattr(search, "TRIED_LAYERS", {"forward": (1,), "reverse": ()})
        patch.setattr(search, "COMBINED", {"forward": (), "reverse": (1,)})
        folder = Folder(tmp_path_factory.mktemp("lab"))
        here = TinyWorld(dict(zip(world.PAIR, (tiny_llama, tiny_gemma), strict=True)))
        found = {}
        for kind in [k for k in KINDS if k not in NEEDS_DOWNLOAD]:
            job = first(kind)
            if kind == "lora_reads_relay":
                without_relay(folder, f"lora.{job.task}.{job.direction}")
            do(job, here, folder, "worker", "command")
            result = folder.result(job.name)
            assert result is not None
            found[kind] = {**result, "predictions": folder.predictions(job.name),
                           "folder": folder.path}  # fmt: skip
    torch.set_num_threads(before)
    return found


def without_relay(folder: Folder, name: str) -> None:
    """A LoRA job's result as it is where there was no relay yet."""
    result = folder.result(name) or {}
    runs = [run for run in result["runs"] if run["method"] != "lora_reads_relay"]
    folder.write(name, {**result, "runs": runs})


def first(kind: str) -> Job:
    job = next(job for job in every_job() if job.kind == kind)
    if job.task and not kind.startswith("soft_tokens"):
        return replace(job, task="sst2", name=job.name.replace(job.task, "sst2"))
    return job


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in NEEDS_DOWNLOAD])
def test_it_ends_well(done: dict[str, dict[str, Any]], kind: str) -> None:
    result = done[kind]
    assert result["status"] == "ok", result.get("trace")
    runs = result.get("runs", [])
    assert runs or result.get("studies") or result.get("members")
    for run in runs:
        assert run["correct"] / run["n"] == run["accuracy"]
        predicted = result["predictions"][f"{run['method']}.seed{run['seed']}"]
        assert predicted.shape == (run["n"],) == (24,)


def test_a_bridge_job_ships_the_seed_that_did_best_on_held_out_rows(
    done: dict[str, dict[str, Any]],
) -> None:
    result = done["bridge"]
    (folder,) = (result["folder"] / "bridges").glob("*--sst2")
    card = verify(folder)
    held = {r["seed"]: r["held_out_accuracy"] for r in result["runs"] if r["method"] == "bridge"}
    assert card.training.held_out_accuracy == max(held.values())
    assert card.training.held_out_accuracy == held[card.training.recipe["seed"]]
    assert "part" in card.training.provenance
    methods = {run["method"] for run in result["runs"]}
    assert methods == {"bridge", "zero_payload", "shuffled_payload"}


def test_what_only_chooses_settings_never_scores_test_rows(
    done: dict[str, dict[str, Any]],
) -> None:
    for kind in ("sweep", "layers", "sensitivity", "ablation", "first_try"):
        assert not done[kind].get("runs")
        assert done[kind]["predictions"] == {}


def test_adapters_that_read_relays_late_are_those_of_the_lora_job(
    done: dict[str, dict[str, Any]],
) -> None:
    settings = {run["hyperparameters"]["learning_rate"] for run in done["lora"]["runs"]}
    late = done["lora_reads_relay"]["runs"]
    assert {run["method"] for run in late} == {"lora_reads_relay"}
    assert {run["hyperparameters"]["learning_rate"] for run in late} == settings
    assert [run["seed"] for run in late] == [0, 1, 2]


def test_a_job_that_breaks_is_recorded_and_does_not_break_the_worker(tmp_path: Path) -> None:
    job = Job("broken", "probe", "sst2")

    class Broken(world.World):
        def rows(self, task: str) -> world.Rows:
            raise RuntimeError("no such rows")

    do(job, Broken(torch.device("cpu")), Folder(tmp_path), "worker", "command")
    result = Folder(tmp_path).result("broken")
    assert result is not None
    assert (result["status"], result["error"]) == ("failed", "RuntimeError: no such rows")
