"""Samples: a few rows a task, written for this project, for machines that cannot get the data set.

A sample is no part of the data set whose labels it shares, and no figure on it says anything about
that data set. It has one split, ``sample``, and no training rows. Every output names it as what it
is: the split's name, its source ``sample`` and the note below stand in result.json, the notice of
stand-ins and every table.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

SAMPLE_SPLIT = "sample"
LICENCE = "Apache-2.0 (written for agentwire)"


def sample_file(task: str) -> Traversable | None:
    """The JSONL file with a task's sample; None where there is none."""
    file = resources.files("agentwire.task") / "samples" / f"{task}.jsonl"
    return file if file.is_file() else None


def sample_note(task: str) -> str:
    """What a task's sample is, for people.

    Raises:
        KeyError: the task has none.
    """
    file = sample_file(task)
    if file is None:
        raise KeyError(task)
    rows = len(file.read_text(encoding="utf-8").splitlines())
    return f"{rows} rows written for agentwire; no part of {task}"
