"""From prompts and label words to token ids, the same for every method.

A label is scored by the first token of its word after the prompt; labels must not share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agentwire.errors import ScenarioError
from agentwire.wire.messages import TaskSpec

MAX_TEXT_TOKENS: Final = 512
"""Tokens of a text that an agent reads; the rest is cut."""
MAX_PREPARED_TASKS: Final = 64
"""Compiled tasks that a backend keeps; callers may ask a new question with every request."""


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
    """The token that starts every sequence: BOS, or none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def pad_id(tokenizer: Tokenizer) -> int:
    """The padding token; 0 if the tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


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


def label_ids(tokenizer: Tokenizer, prompt: str, labels: Sequence[str]) -> tuple[int, ...]:
    """First token of each label word when it follows ``prompt``.

    A space precedes the word, except after a line break, as at the end of a chat template.

    Raises:
        ScenarioError: a word has no token, or two words share their first token.
    """
    glue = "" if not prompt or prompt[-1].isspace() else " "
    prefix = plain_ids(tokenizer, prompt)
    found: dict[int, str] = {}
    for word in labels:
        ids = plain_ids(tokenizer, prompt + glue + word)
        if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
            # The tokenizer merges the word with the end of the prompt: take it on its own.
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


def compile_task(tokenizer: Tokenizer, task: TaskSpec) -> CompiledTask:
    """Token ids of ``task``; raises ScenarioError for unusable prompts and labels."""
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


def chat_or_plain(tokenizer: Tokenizer, prompt: str) -> str:
    """``prompt`` in the model's chat template, if it has one."""
    if not tokenizer.chat_template:
        return prompt
    conversation = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return str(text)


def around_text(tokenizer: Tokenizer, template: str) -> tuple[list[int], str, str]:
    """What a model reads before its text (ids with BOS), the glue, and what follows (text).

    ``template`` holds ``{text}`` once; see ``chat_or_plain``.
    """
    before, after = chat_or_plain(tokenizer, template).split("{text}")
    glue = " " if before.endswith(" ") else ""
    opening = plain_ids(tokenizer, before.removesuffix(" "))
    if opening[:1] != start_ids(tokenizer):
        opening = start_ids(tokenizer) + opening
    return opening, glue, after


def template_ids(
    tokenizer: Tokenizer, template: str, texts: Sequence[str]
) -> tuple[list[int], list[list[int]], list[int]]:
    """Ids before every text, ids of each text, and ids after every text."""
    before, glue, after = around_text(tokenizer, template)
    return before, text_ids(tokenizer, texts, glue), plain_ids(tokenizer, after)
