"""From prompts and label words to token ids: the same for every method, so that scores compare.

A label is scored by the first token that follows the prompt when the label word is written after
it. Two labels that share that token could not be told apart, so they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentwire.errors import ScenarioError
from agentwire.wire.messages import TaskSpec

MAX_TEXT_TOKENS = 512
"""Longest text that an agent reads, in its own tokens; the rest is cut."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: Any

    def __call__(self, text: Any, **options: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def decode(self, token_ids: Any, **options: Any) -> str: ...


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of ``text`` without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """The token that opens every sequence: BOS, or nothing where the model has none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def text_ids(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    glue: str = "",
    max_tokens: int | None = MAX_TEXT_TOKENS,
) -> list[list[int]]:
    """Ids of each text, cut at ``max_tokens``, without special tokens; never empty.

    A text comes from outside: what looks like a control token in it (``<|im_end|>``) is read as
    plain characters, so that no text can end its turn and speak as somebody else. A text without
    tokens stands as one BOS (or EOS), so that attention has something to read.

    Args:
        glue: stands before each text: the space that the words before it end with, since most
            tokenizers join a space to the word that follows.
    """
    if not texts:
        return []
    encoded = tokenizer(
        [glue + text for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=max_tokens is not None,
        max_length=max_tokens,
    )["input_ids"]
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    filler = next(token for token in known if token is not None)
    return [list(ids) or [filler] for ids in encoded]


@dataclass(frozen=True, slots=True)
class CompiledTask:
    """A task in one model's tokens.

    Attributes:
        prompt: ids that follow the soft tokens.
        prompt_labels: L ids, scored after ``prompt``.
        before, after: ids around the text where the model reads it itself.
        glue: a space that stands before the text, or nothing.
        text_labels: L ids, scored after ``after``.
    """

    prompt: tuple[int, ...]
    prompt_labels: tuple[int, ...]
    before: tuple[int, ...]
    glue: str
    after: tuple[int, ...]
    text_labels: tuple[int, ...]


def label_ids(tokenizer: Tokenizer, prompt: str, labels: Sequence[str]) -> tuple[int, ...]:
    """First token of each label word when it is written after ``prompt``.

    After a line break (a chat template's end) the word stands alone, else after a space.

    Raises:
        ScenarioError: a word has no token, or two words share their first token.
    """
    glue = "" if not prompt or prompt[-1].isspace() else " "
    prefix = plain_ids(tokenizer, prompt)
    found: dict[int, str] = {}
    for word in labels:
        ids = plain_ids(tokenizer, prompt + glue + word)
        if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
            # The word merges with the end of the prompt: take it on its own.
            ids = prefix + plain_ids(tokenizer, glue + word)
        if len(ids) == len(prefix):
            raise ScenarioError(
                f"the label word {word!r} has no token in this model.",
                hint="Choose another word in the task's `labels`.",
            )
        first = ids[len(prefix)]
        if first in found:
            raise ScenarioError(
                f"the label words {found[first]!r} and {word!r} begin with the same token.",
                hint="Choose words that differ in their first token.",
            )
        found[first] = word
    return tuple(found)


def chat_or_plain(tokenizer: Tokenizer, prompt: str) -> str:
    """``prompt`` as the model expects to be asked: in its chat template where it has one."""
    if not tokenizer.chat_template:
        return prompt
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return str(text)


def compile_task(tokenizer: Tokenizer, task: TaskSpec) -> CompiledTask:
    """Token ids for ``task`` in this model.

    Raises:
        ScenarioError: ``text_prompt`` lacks ``{text}``, or the labels cannot be told apart.
    """
    if task.text_prompt.count("{text}") != 1:
        raise ScenarioError(
            f"the text prompt of task {task.name!r} must hold {{text}} exactly once.",
            hint="Write it as in `Review: {text}` in the task's file.",
        )
    before, glue, after = around_text(tokenizer, task.text_prompt)
    return CompiledTask(
        prompt=tuple(plain_ids(tokenizer, task.prompt)),
        prompt_labels=label_ids(tokenizer, task.prompt, task.labels),
        before=tuple(before),
        glue=glue,
        after=tuple(plain_ids(tokenizer, after)),
        text_labels=label_ids(tokenizer, after, task.labels),
    )


def around_text(tokenizer: Tokenizer, template: str) -> tuple[list[int], str, str]:
    """What a model reads before its text (ids, BOS in front), the glue, and what follows (text).

    ``template`` holds ``{text}`` once; it is put into the model's chat template if it has one.
    """
    before, after = chat_or_plain(tokenizer, template).split("{text}")
    glue = " " if before.endswith(" ") else ""
    opening = plain_ids(tokenizer, before.removesuffix(" "))
    if opening[:1] != start_ids(tokenizer):
        opening = start_ids(tokenizer) + opening
    return opening, glue, after
