"""Few-shot prompts: solved examples before the question (Tom Brown et al., "Language Models are
Few-Shot Learners", 2020, arXiv:2005.14165)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from agentwire.task.rows import Example
from agentwire.wire.messages import TaskSpec


def few_shot_task(task: TaskSpec, rows: Sequence[Example], shots: int, seed: int) -> TaskSpec:
    """``task`` with ``shots`` solved training examples of each class before its text prompt.

    Examples stand in random order, so that the last class is not favoured always.

    Args:
        rows: training rows; at least one of each class.
        seed: of the choice and of the order.
    """
    draw = random.Random(f"{seed}:{shots}")
    classes: dict[int, list[Example]] = {}
    for row in rows:
        classes.setdefault(row.label, []).append(row)
    examples = [
        example
        for label in sorted(classes)
        for example in draw.sample(classes[label], min(shots, len(classes[label])))
    ]
    draw.shuffle(examples)
    solved = [
        # A text may hold the place-holder's own characters; only the question's stays one.
        task.text_prompt.replace("{text}", example.text.replace("{text}", "{ text }"))
        + f" {task.labels[example.label]}"
        for example in examples
    ]
    return replace(task, text_prompt="\n\n".join([*solved, task.text_prompt]))
