"""Few-shot prompting: the receiver reads solved examples before the text (Tom Brown et al.,
"Language Models are Few-Shot Learners", 2020, arXiv:2005.14165)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from agentwire.errors import RemoteProtocolError, ScenarioError
from agentwire.task.rows import Example
from agentwire.training.baselines.baseline import Baseline, Fitted, receiver_model
from agentwire.training.baselines.context import BaselineContext
from agentwire.wire.messages import TaskSpec

SHOTS = (1, 2, 4)
"""Examples of each class to choose from."""
PROMPT_TOKENS = 2000
"""Longest prompt, estimated at four characters per token."""
CHOOSING_ROWS = 200
"""Held-out rows that choose the number of examples."""


def few_shot_task(task: TaskSpec, rows: Sequence[Example], shots: int, seed: int) -> TaskSpec:
    """``task`` with ``shots`` solved training examples of each class before its text prompt.

    Examples are in random order, so that the answer is not biased towards the last class.
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
        # A text may contain "{text}" itself, but only the last one is the placeholder.
        task.text_prompt.replace("{text}", example.text.replace("{text}", "{ text }"))
        + f" {task.labels[example.label]}"
        for example in examples
    ]
    return replace(task, text_prompt="\n\n".join([*solved, task.text_prompt]))


def _fit(context: BaselineContext) -> Fitted:
    """Chooses the number of examples; nothing is trained."""
    rows, held_out = context.rows.rows, context.held_out.rows[:CHOOSING_ROWS]
    labels = torch.tensor([row.label for row in held_out])
    found: dict[int, float] = {}
    for shots in SHOTS:
        task = few_shot_task(context.task, rows, shots, context.recipe.seed)
        if found and len(task.text_prompt) / 4 > PROMPT_TOKENS:
            break
        try:
            scores = context.receiver.score_text([row.text for row in held_out], task).scores
        except RemoteProtocolError as error:  # the examples alone fill the model's context
            if found:
                break
            raise ScenarioError(
                f"few-shot prompting cannot be used: {error}.",
                hint="Remove it from `methods`, or use a receiver with a longer context.",
            ) from None
        right = (torch.from_numpy(scores).argmax(-1) == labels).double().mean()
        found[shots] = float(right)
        message = f"{shots} examples per class: held-out {found[shots]:.3f}"
        context.progress(message, shots / SHOTS[-1])
    best = max(found, key=lambda shots: found[shots])
    return Fitted({"shots": torch.tensor(best)}, {"held_out_accuracy": found[best]})


def _answer(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
    shots = int(learned.tensors["shots"])
    task = few_shot_task(context.task, context.rows.rows, shots, context.recipe.seed)
    scored = context.receiver.score_text(texts, task)
    context.left_out(scored.unread)
    return torch.from_numpy(scored.scores)


FEW_SHOT = Baseline(
    "few-shot", lambda r: f"{receiver_model(r)} reads solved examples and the text", _fit, _answer
)
