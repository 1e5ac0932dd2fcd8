"""From prompts and label words to token ids, the same for every method.

A label is scored by the first token of its word after the prompt; labels must not share it. Only
a chat template's own text may become control tokens (``task.tokens``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentwire.bridge.card import TEXT_TOKENS
from agentwire.errors import NackCode, RemoteProtocolError, ScenarioError
from agentwire.task.tokens import (
    Tokenizer,
    around_text,
    data_rows,
    label_ids,
    pad_id,
    plain_ids,
    start_ids,
)
from agentwire.wire.messages import QUESTION, RelaySpec, TaskSpec

MAX_TEXT_TOKENS: Final = TEXT_TOKENS
"""Tokens of a text that a sender reads for its bridge."""
MAX_READ_TOKENS: Final = 2048
"""Tokens of a text that a model reads itself, if it can read so many."""
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
    """Ids of each text, cut at ``max_tokens``; see ``read_texts``."""
    return read_texts(tokenizer, texts, glue, max_tokens)[0]


def read_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    glue: str = "",
    max_tokens: int | None = MAX_TEXT_TOKENS,
) -> tuple[list[list[int]], list[int]]:
    """Ids of each text up to ``max_tokens``, without special tokens, and how many more there are.

    Text that looks like a control token (``<|im_end|>``) is read as plain characters, so that no
    text can end its turn. A text without tokens becomes one BOS or EOS, which attention can read.

    Args:
        glue: the space that ends the preceding words; most tokenizers join it to the next word.
    """
    rows = data_rows(tokenizer, [glue + text for text in texts])
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    filler = next(token for token in known if token is not None)
    read = [row[:max_tokens] or [filler] for row in rows]
    return read, [max(0, len(row) - len(cut)) for row, cut in zip(rows, read, strict=True)]


def text_limit(context: int | None, around: int, answer: int) -> int:
    """Tokens of a text that a model reads itself, with ``around`` others and before its answer.

    Args:
        context: tokens that the model can read and write; None: unknown.

    Raises:
        RemoteProtocolError: there is no room for a text.
    """
    left = MAX_READ_TOKENS if context is None else min(MAX_READ_TOKENS, context - around - answer)
    if left < 1:
        raise RemoteProtocolError(
            NackCode.TOO_LARGE,
            f"a prompt of {around} tokens and an answer of {answer} exceed the model's limit of "
            f"{context} tokens",
        )
    return left


@dataclass(frozen=True, slots=True)
class CompiledTask:
    """A task in one model's tokens, without any question.

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
    if max(task.prompt.count(QUESTION), task.text_prompt.count(QUESTION)) > 1:
        raise ScenarioError(
            f"the prompts of task {task.name!r} must hold {{question}} at most once.",
            hint="Write it as in `Question: {question}` in the task's file.",
        )
    around = around_text(tokenizer, task.text_prompt)
    prompt = task.prompt.replace(QUESTION, "")
    return CompiledTask(
        prompt=tuple(plain_ids(tokenizer, prompt)),
        prompt_labels=label_ids(tokenizer, prompt, task.labels),
        before=tuple(around.before),
        glue=around.glue,
        after=tuple(around.after),
        text_labels=label_ids(tokenizer, around.end, task.labels, own=around.own),
    )


def prompt_rows(tokenizer: Tokenizer, task: TaskSpec, questions: Sequence[str]) -> list[list[int]]:
    """Ids that follow the soft tokens of each row; questions are plain text."""
    return data_rows(tokenizer, [task.prompt.replace(QUESTION, one) for one in questions])


def template_ids(
    tokenizer: Tokenizer, relay: RelaySpec, texts: Sequence[str], context: int | None
) -> tuple[list[int], list[list[int]], list[int]]:
    """Ids before every text, ids of each text, and ids after every text, for a summary.

    Raises:
        RemoteProtocolError: the model cannot read one of the texts as a whole.
    """
    around = around_text(tokenizer, relay.template)
    others = len(around.before) + len(around.after)
    limit = text_limit(context, others, relay.max_new_tokens)
    rows, unread = read_texts(tokenizer, texts, around.glue, limit)
    if any(unread):
        raise RemoteProtocolError(
            NackCode.TOO_LARGE,
            f"a text of {limit + max(unread)} tokens is too long to sum up (at most {limit})",
        )
    return around.before, rows, around.after
