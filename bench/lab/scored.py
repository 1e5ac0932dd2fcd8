"""One run's figures, in the shape that the record holds."""

from __future__ import annotations

import datetime
from typing import Any

import torch
from torch import Tensor

from agentwire.task.metrics import wilson_interval
from agentwire.training.new_card import device_name
from lab.jobs import Job


def run_entry(
    job: Job,
    method: str,
    *,
    device: torch.device,
    seed: int = 0,
    predicted: Tensor | None = None,
    labels: Tensor | None = None,
    held_out: float | None = None,
    seconds: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """A run; without ``predicted`` it is one that test rows were not scored for."""
    entry: dict[str, Any] = {
        "task": job.task,
        "direction": job.direction,
        "method": method,
        "seed": seed,
        "job": job.name,
        "seconds": round(seconds, 1),
        "device": device_name(device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if held_out is not None:
        entry["held_out_accuracy"] = round(held_out, 4)
    if predicted is not None and labels is not None:
        correct, n = int((predicted == labels).sum()), len(labels)
        entry |= {
            "accuracy": correct / n,
            "correct": correct,
            "n": n,
            "wilson95": [round(x, 4) for x in wilson_interval(correct, n)],
            "test_scorings": 1,
        }
    return {**entry, **more}
