"""Baselines that tune the receiver: prompt tuning and LoRA, on texts or on the sender's summaries.

Short trainings choose the settings on held-out rows. One full training follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.errors import RemoteProtocolError
from agentwire.model.prompting import MAX_TEXT_TOKENS, read_texts, template_ids, text_limit
from agentwire.task.datasets import Dataset
from agentwire.training.baselines.baseline import Baseline, Fitted, receiver_model, sender_model
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.baselines.fitting import labels_of, recipe_of, train
from agentwire.training.baselines.reader import (
    Adapter,
    Reader,
    SoftPrompt,
    TextRows,
    blind_objective,
    reader_objective,
    text_rows,
)
from agentwire.training.loop import Trained
from agentwire.training.rows import sample

PROMPT_GRID = tuple(
    {"length": length, "learning_rate": rate} for length in (8, 32) for rate in (1e-2, 5e-2)
)
LORA_GRID = tuple({"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3))
CHOOSING = 3
"""A training that only chooses settings has this fraction (1 / 3) of the steps."""
SUMMARISED_ROWS = 3_000
"""Most training rows that the sender summarises, since it takes long."""
SUMMARY_BATCH = 16

Read = Callable[[BaselineContext, Sequence[str]], tuple[Sequence[str], Sequence[int]]]
"""What the receiver reads in place of some texts, and how many tokens of each are lost by that."""


def the_texts(context: BaselineContext, texts: Sequence[str]) -> tuple[Sequence[str], list[int]]:
    return texts, [0] * len(texts)


def summaries(context: BaselineContext, texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The sender's summaries, as text relay would send them; "" of a text that it cannot read."""
    unread = [_too_long_to_sum_up(context, text) for text in texts]
    order = sorted((i for i in range(len(texts)) if not unread[i]), key=lambda i: len(texts[i]))
    found = [""] * len(texts)
    for begin in range(0, len(order), SUMMARY_BATCH):
        numbers = order[begin : begin + SUMMARY_BATCH]
        written = context.sender.relay([texts[i] for i in numbers], context.task).texts
        for i, text in zip(numbers, written, strict=True):
            found[i] = text
        context.progress("summaries", min(1.0, (begin + SUMMARY_BATCH) / len(order)))
    return found, unread


def _too_long_to_sum_up(context: BaselineContext, text: str) -> int:
    """All tokens of a text that is too long for a summary; 0 of any other."""
    sender, relay = context.sender, context.task.relay
    if relay.verbatim:
        return 0
    try:
        template_ids(sender.tokenizer, relay, [text], sender.context)
    except RemoteProtocolError:
        return len(read_texts(sender.tokenizer, [text], max_tokens=None)[0][0])
    return 0


def _fit_reader(
    context: BaselineContext,
    grid: Sequence[dict[str, Any]],
    make: Callable[[dict[str, Any]], nn.Module],
    rows: Dataset,
    read: Read = the_texts,
) -> Fitted:
    receiver, task = context.receiver, context.task
    receiver.prepare(task)

    def prepared(part: Dataset, longest: int) -> TextRows:
        texts, _ = read(context, [row.text for row in part.rows])
        return text_rows(receiver, task, texts, [row.label for row in part.rows], longest)[0]

    train_rows = prepared(rows, context.recipe.max_text_tokens)
    held_out = prepared(context.held_out, MAX_TEXT_TOKENS)

    def trained(choice: dict[str, Any], steps: int, stage: str) -> Trained:
        torch.manual_seed(context.recipe.seed)
        module = make(choice)
        recipe = recipe_of(context, learning_rate=choice["learning_rate"], steps=steps,
                           evaluate_every=max(1, steps // 5), weight_decay=0.0)  # fmt: skip
        reader = Reader(receiver, task)
        objective = reader_objective(reader, module, train_rows, held_out, recipe)
        return train(context, objective, [recipe], stage)[1]

    steps = context.recipe.steps
    tried = [trained(choice, max(1, steps // CHOOSING), f"choosing {choice}") for choice in grid]
    best = max(range(len(grid)), key=lambda i: tried[i].best.rank)
    final = trained(grid[best], steps, "training")
    notes = {**grid[best], "held_out_accuracy": final.best.accuracy}
    return Fitted(dict(final.module.state_dict()), notes)


def _answer_reader(
    context: BaselineContext, module: nn.Module, texts: Sequence[str], read: Read = the_texts
) -> Tensor:
    receiver, task = context.receiver, context.task
    ids = receiver.prepared(task).ids
    prompt = len(module.latents) if isinstance(module, SoftPrompt) else 0
    limit = text_limit(receiver.context, len(ids.before) + len(ids.after) + prompt, 1)
    words, lost = read(context, texts)
    rows, unread = text_rows(receiver, task, words, [0] * len(texts), limit)
    context.left_out(lost)
    context.left_out(unread)
    return Reader(receiver, task).scores(module, rows)


def _prompt(context: BaselineContext, learned: Fitted) -> SoftPrompt:
    module = SoftPrompt(context.receiver, learned.tensors["latents"].shape[0])
    module.load_state_dict(learned.tensors)
    return module.to(context.receiver.device)


def _fit_blind(context: BaselineContext) -> Fitted:
    receiver, task = context.receiver, context.task
    receiver.prepare(task)
    torch.manual_seed(context.recipe.seed)
    module = SoftPrompt(receiver, context.soft_tokens)
    recipe = recipe_of(context, learning_rate=1e-2, weight_decay=0.0)
    labels, held_out = labels_of(context, context.rows), labels_of(context, context.held_out)
    logits = partial(receiver.logits_from_soft, task=task)
    objective = blind_objective(logits, module, labels, held_out)
    done = train(context, objective, [recipe], "training")[1]
    return Fitted(dict(done.module.state_dict()), {"held_out_accuracy": done.best.accuracy})


@torch.inference_mode()
def _answer_blind(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
    soft = _prompt(context, learned)()[None]
    return context.receiver.logits_from_soft(soft, context.task).expand(len(texts), -1)


PROMPT_TUNING = Baseline(
    "prompt tuning",
    lambda r: f"{receiver_model(r)} reads a trained prompt and the text",
    lambda c: _fit_reader(c, PROMPT_GRID, lambda g: SoftPrompt(c.receiver, g["length"]), c.rows),
    lambda c, learned, texts: _answer_reader(c, _prompt(c, learned), texts),
)
PROMPT_TUNING_BLIND = Baseline(
    "prompt tuning, blind",
    lambda r: f"{receiver_model(r)} reads a trained prompt, and no text",
    _fit_blind,
    _answer_blind,
)


def _adapter(context: BaselineContext) -> Adapter:
    return Adapter(context.receiver.model).to(context.receiver.device)


def _lora(title: str, who: Callable[[Any], str], read: Read, most_rows: int = 0) -> Baseline:
    def fit(context: BaselineContext) -> Fitted:
        rows = context.rows
        if most_rows and most_rows < len(rows):
            rows = sample(rows, most_rows, context.recipe.seed)
        return _fit_reader(context, LORA_GRID, lambda choice: _adapter(context), rows, read)

    def answer(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
        module = _adapter(context)
        module.load_state_dict(learned.tensors)
        return _answer_reader(context, module, texts, read)

    return Baseline(title, who, fit, answer)


LORA = _lora(
    "LoRA", lambda r: f"{receiver_model(r)} with adapters reads the text itself", the_texts
)
LORA_RELAY = _lora(
    "text relay, LoRA",
    lambda r: f"{receiver_model(r)} with adapters reads {sender_model(r)}'s summary",
    summaries,
    SUMMARISED_ROWS,
)
