"""From prompts and label words to token ids, the same for every method.

A label is scored by the first token of its word after the prompt; labels must not share it. Only
a chat template's own text may become control tokens (``task.tokens``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentwire.errors import ScenarioError
from agentwire.task.tokens import (
    Tokenizer,
    around_text,
    data_rows,
    label_ids,
    pad_id,
    plain_ids,
    start_ids,
)
from agentwire.wire.messages import TaskSpec

MAX_TEXT_TOKENS: Final = 512
"""Tokens of a text that an agent reads; the rest is cut."""
MAX_PREPARED_TASKS: Final = 64
"""Compiled tasks that a backend keeps; callers may ask a new question with every request."""


def opening_ids(tokenizer: Tokenizer) -> list[int]:
    """What a sender reads before every text: BOS, or padding if there is none.

    A causal model puts very large activations on its first token; the bridge never sees it.
    """
    return start_ids(tokenizer) or [pad_id(tokenizer)]


def text_ids(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    glue: str = "",
    max_tokens: int | None = MAX_TEXT_TOKENS,
) -> list[list[int]]:
    """Ids of each text, cut at ``max_tokens``, without special tokens.

    Text that looks like a control token (``<|im_end|>``) is read as plain characters, so that no
    text can end its turn. A text without tokens becomes one BOS or EOS, which attention can read.

    Args:
        glue: the space that ends the preceding words; most tokenizers join it to the next word.
    """
    rows = data_rows(tokenizer, [glue + text for text in texts], max_tokens)
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    filler = next(token for token in known if token is not None)
    return [row or [filler] for row in rows]


@dataclass(frozen=True, slots=True)
class CompiledTask:
    """A task in one model's tokens.

    Attributes:
        prompt: ids that follow the soft tokens.
        before, after: ids around a text that the model reads itself.
        glue: a space that precedes the text, or nothing.
        prompt_labels, text_labels: L ids, scored after ``prompt`` and after ``after``.
    """

    prompt: tuple[int, ...]
    prompt_labels: tuple[int, ...]
    before: tuple[int, ...]
    glue: str
    after: tuple[int, ...]
    text_labels: tuple[int, ...]


def compile_task(tokenizer: Tokenizer, task: TaskSpec) -> CompiledTask:
    """Token ids of ``task``; raises ScenarioError for unusable prompts and labels."""
    if task.text_prompt.count("{text}") != 1:
        raise ScenarioError(
            f"the text prompt of task {task.name!r} must hold {{text}} exactly once.",
            hint="Write it as in `Review: {text}` in the task's file.",
        )
    around = around_text(tokenizer, task.text_prompt)
    return CompiledTask(
        prompt=tuple(plain_ids(tokenizer, task.prompt)),
        prompt_labels=label_ids(tokenizer, task.prompt, task.labels),
        before=tuple(around.before),
        glue=around.glue,
        after=tuple(around.after),
        text_labels=label_ids(tokenizer, around.end, task.labels, own=around.own),
    )


def template_ids(
    tokenizer: Tokenizer, template: str, texts: Sequence[str]
) -> tuple[list[int], list[list[int]], list[int]]:
    """Ids before every text, ids of each text, and ids after every text."""
    around = around_text(tokenizer, template)
    return around.before, text_ids(tokenizer, texts, around.glue), around.after
