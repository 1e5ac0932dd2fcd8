"""What one worker holds: models, rows and cached states, each loaded when first asked for."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from agentwire.config import Config
from agentwire.model.sources.lookup import locate
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.holdout import held_out_split
from agentwire.task.rows import Example, rows_sha256
from agentwire.training.baselines.reader import TextRows
from agentwire.training.states import StateCache, cache_states
from agentwire.wire.messages import TaskSpec
from lab.norms import fuse_norms

PAIR = ("smollm2-135m-instruct", "gemma-3-270m")
TEST_SPLITS = {"sst2": "validation"}
HELD_OUT = 1000
TRAIN_TOKENS = 128
"""Longest text in training, in the sender's tokens; scored texts are never cut."""
SCORED_TOKENS = 512
ARRIVAL_S = 240
"""How long a model is waited for."""
Opening = Literal["dropped", "kept", "absent"]
"""The sender's opening token: read but hidden from the bridge; read and shown to it; not read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The three parts of one task's data."""

    name: str
    spec: TaskSpec
    labels: tuple[str, ...]
    train: Dataset
    held_out: Dataset
    test: Dataset

    def part(self, name: str) -> Dataset:
        """``train``, ``held_out`` or ``test``."""
        return {"train": self.train, "held_out": self.held_out, "test": self.test}[name]

    @property
    def classes(self) -> int:
        return len(self.labels)


class World:
    """Models, rows and states of one process.

    Args:
        device: where everything is computed.
        quick: cut every split to a few rows: a rehearsal whose figures mean nothing.
    """

    def __init__(self, device: torch.device, *, quick: bool = False) -> None:
        self.device, self.quick = device, quick
        self.train_until = math.inf
        self.tokenised: dict[tuple[str, str, str, bool], TextRows] = {}
        self._config = Config.from_env()
        self._models: dict[tuple[str, str, int | None], TransformersBackend] = {}
        self._rows: dict[str, Rows] = {}
        self._states: dict[tuple[str, int | None, str, int, str, Opening, int], StateCache] = {}

    def names(self, direction: str) -> tuple[str, str]:
        """Sender and receiver."""
        return PAIR if direction == "forward" else (PAIR[1], PAIR[0])

    @cached_property
    def half(self) -> str:
        """Precision of frozen receivers in training."""
        return "bfloat16" if self.device.type == "cuda" else "float32"

    def model(
        self, name: str, dtype: str = "float32", random: int | None = None
    ) -> TransformersBackend:
        """A model; ``random``: the same shape with fresh weights of that seed."""
        key = (name, dtype, random)
        if key not in self._models:
            folder = self._wait_for(name)
            if folder is None:
                raise FileNotFoundError(f"{name} is not in the cache: agentwire models pull {name}")
            spec = AgentSpec(
                name=name, backend="transformers", model=name, folder=str(folder), dtype=dtype,
                device=str(self.device),
            )  # fmt: skip
            backend = TransformersBackend.load(spec, lambda stage, fraction: None)
            if random is not None:
                backend.model = self._untrained(backend, random)
            if dtype != "float32":
                fuse_norms(backend.model)
            self._models[key] = backend
        return self._models[key]

    def _wait_for(self, name: str) -> Path | None:
        """The model's folder; it may still be on its way to this machine."""
        until = time.monotonic() + ARRIVAL_S
        while (folder := locate(name, config=self._config).folder) is None:
            if time.monotonic() > until:
                return None
            time.sleep(0.5)
        return folder

    def out_of_time(self) -> bool:
        """Whether trainings should end with what they have."""
        return time.monotonic() > self.train_until

    def time_left(self) -> float:
        """Seconds that trainings may still take."""
        return self.train_until - time.monotonic()

    def _untrained(self, backend: TransformersBackend, seed: int) -> torch.nn.Module:
        torch.manual_seed(1000 + seed)
        model = type(backend.model)(copy.deepcopy(backend.model.config))
        return model.to(self.device).eval().requires_grad_(False)  # type: ignore[no-any-return]

    def rows(self, task: str) -> Rows:
        """Training, held-out and test rows; the same for every method and seed."""
        if task not in self._rows:
            definition = load_definition(task)
            train = load_rows(task, "train", config=self._config, allow_download=False)
            split = TEST_SPLITS.get(task, "test")
            test = load_rows(task, split, config=self._config, allow_download=False)
            if self.quick:
                train, test = _every(train, 96), _every(test, 16)
            kept, held_out = self._split(train)
            self._rows[task] = Rows(
                task, definition.spec(), definition.labels, kept, held_out, test
            )  # fmt: skip
        return self._rows[task]

    def _split(self, train: Dataset) -> tuple[Dataset, Dataset]:
        """``held_out_split``, remembered in the cache: for SST-2 it takes most of a minute."""
        n = min(HELD_OUT, len(train) // 8)
        digest = rows_sha256(train.rows)
        file = self._config.home / "splits" / f"{train.name}-{n}-{digest[:16]}.json"
        if file.is_file():
            kept, held = json.loads(file.read_text())
            return _part(train, "train", kept, len(held)), _part(train, "held_out", held, len(held))
        chosen = held_out_split(train, n, 0)
        places = {row: i for i, row in enumerate(train.rows)}  # of equal rows the last: equal too
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps([[places[row] for row in p.rows] for p in chosen]))
        os.replace(partial, file)
        return chosen

    def states(
        self, direction: str, task: str, layer: int, part: str,
        *, random: int | None = None, opening: Opening = "dropped", most: int = 0,
    ) -> StateCache:  # fmt: skip
        """The sender's states after ``layer`` layers for a part of the task's rows.

        Args:
            most: of the training part only so many rows, drawn at random; 0: all.
        """
        sender = self.names(direction)[0]
        key = (sender, random, task, layer, part, opening, most if part == "train" else 0)
        if key not in self._states:
            rows = self.rows(task).part(part).rows
            if key[-1]:
                rows = _drawn(rows, most)
            torch.set_float32_matmul_precision("highest")
            backend = self.model(sender, random=random)
            if opening != "dropped":
                backend = _with_opening(backend, opening)
            self._states[key] = cache_states(
                backend,
                [row.text for row in rows],
                [row.label for row in rows],
                layer=layer,
                max_tokens=SCORED_TOKENS if part == "test" else TRAIN_TOKENS,
                batch_size=256 if self.device.type == "cuda" else 16,
            )
        return self._states[key]

    def forget_states(self) -> None:
        """Makes room on the device."""
        self._states.clear()
        self.tokenised.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _drawn(rows: tuple[Example, ...], most: int) -> tuple[Example, ...]:
    """At most so many rows, in their order; the same ones each time."""
    if len(rows) <= most:
        return rows
    chosen = sorted(random.Random(0).sample(range(len(rows)), most))
    return tuple(rows[i] for i in chosen)


def _with_opening(backend: TransformersBackend, opening: Opening) -> TransformersBackend:
    """The same sender whose opening token the bridge sees, or that reads none (ablation)."""

    class Shown(TransformersBackend):
        def opening(self) -> list[int]:
            return super().opening() if opening == "kept" else []

        def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
            ids, mask = super().tokens(texts)  # the mask leaves the first token out
            lengths = mask.sum(dim=1) + 1
            shown = torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
            return ids[:, :TRAIN_TOKENS], shown[:, :TRAIN_TOKENS]

        def states(self, short: Any, ids: Tensor) -> Tensor:
            output: Tensor = short(input_ids=ids, use_cache=False).last_hidden_state
            return output

    return Shown(backend.model, backend.tokenizer, backend.identity, backend.device)


def _part(data: Dataset, name: str, chosen: list[int], n: int) -> Dataset:
    """Some rows of a split, marked as ``held_out_split`` marks its parts."""
    rows = tuple(data.rows[i] for i in chosen)
    marks = {"part": f"{name} (n={n}, seed=0)", "rows_sha256": rows_sha256(rows)}
    return replace(data, rows=rows, provenance={**data.provenance, **marks})


def _every(data: Dataset, n: int) -> Dataset:
    step = max(1, len(data) // n)
    return replace(data, rows=data.rows[::step][:n])


def versions() -> dict[str, str]:
    """Versions that the figures depend on."""
    from agentwire.evaluation.summary import versions as known

    return known()


def model_folder(name: str) -> Path:
    """The folder of a model in the cache."""
    folder = locate(name, config=Config.from_env()).folder
    if folder is None:
        raise FileNotFoundError(name)
    return folder
