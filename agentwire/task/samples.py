"""Samples: a few rows per task, written for this project, for machines without the dataset.

A sample is not part of the dataset whose labels it has, and its figures say nothing about that
dataset. It has one split, ``sample``, and no training rows. result.json, the notice of stand-ins
and every table mark it as a sample.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

SAMPLE_SPLIT = "sample"
LICENCE = "Apache-2.0 (written for agentwire)"


def sample_file(task: str) -> Traversable | None:
    """The JSONL file with a task's sample, if it has one."""
    file = resources.files("agentwire.task") / "samples" / f"{task}.jsonl"
    return file if file.is_file() else None


def sample_note(task: str) -> str:
    """A description of a task's sample."""
    file = sample_file(task)
    if file is None:
        raise KeyError(task)
    rows = file.read_text(encoding="utf-8").count("\n")
    return f"{rows} rows written for agentwire; no part of {task}"
