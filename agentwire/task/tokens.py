"""Token ids of texts, of what surrounds them, and of the label words that follow.

Only a chat template's own text may become control tokens. Everything else is data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from agentwire.errors import ModelError, ScenarioError, first_line
from agentwire.wire.messages import QUESTION

MAX_LABEL_WORK: Final = 1 << 22
"""Labels times tokens of the prompt, and characters read for all labels: more is refused."""
LABEL_CONTEXT: Final = 64
"""Characters of the prompt that decide how the word after it is tokenized."""
SETTLED: Final = 8
"""If so many last tokens agree, what comes before them changes nothing in what follows."""
MARK: Final = "\ue000text\ue001"
"""Stands for the content where a chat template is rendered to find the template's own text."""

TEMPLATE_S: Final = 5.0
"""A chat template that takes longer is refused."""
TEMPLATE_CHARACTERS: Final = 1 << 20
"""A chat template may add so many characters to the messages."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: Any

    def __call__(self, text: Any, **options: Any) -> Any: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def decode(self, token_ids: Any, **options: Any) -> str: ...


_CONTROL: WeakKeyDictionary[Any, Mapping[int, str]] = WeakKeyDictionary()


def control_tokens(tokenizer: Tokenizer) -> Mapping[int, str]:
    """Control tokens by id: special and added ones (``<|im_end|>``, ``<table>``).

    White space and single characters are not among them, nor is the unknown token, which stands for
    any character that the vocabulary lacks.
    """
    if tokenizer not in _CONTROL:
        added = getattr(tokenizer, "added_tokens_decoder", {})
        found = {int(token): str(entry) for token, entry in added.items()}
        special = getattr(tokenizer, "all_special_ids", ())
        named = zip(special, getattr(tokenizer, "all_special_tokens", ()), strict=True)
        found |= {int(token): str(content) for token, content in named}
        found.pop(getattr(tokenizer, "unk_token_id", None) or -1, None)
        _CONTROL[tokenizer] = {i: text for i, text in found.items() if len(text.strip()) > 1}
    return _CONTROL[tokenizer]


def template_text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a chat template's own text, which may hold control tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of ``text`` without control tokens."""
    (row,) = data_rows(tokenizer, [text])
    return row


def data_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text. What looks like a control token is data."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    control = control_tokens(tokenizer).keys()
    return [
        list(ids) if control.isdisjoint(ids) else _spelled_out(tokenizer, text)
        for text, ids in zip(texts, encoded["input_ids"], strict=True)
    ]


def _spelled_out(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that holds the words of added tokens, which tokenizers match first.

    The text is cut after the first character of each, so that none is left to match.
    """
    control = control_tokens(tokenizer)

    def read(pieces: Sequence[str]) -> list[int]:
        rows = tokenizer(list(pieces), add_special_tokens=False, split_special_tokens=True)
        return [token for row in rows["input_ids"] for token in row]

    ids, words, cuts = read([text]), set[str](), {0, len(text)}
    while new := {control[i] for i in ids if i in control} - words:
        words |= new
        cuts |= {place + 1 for word in new for place in _places(word, text)}
        ends = sorted(cuts)
        ids = read([text[a:b] for a, b in pairwise(ends)])
    # The rest is made by the tokenizer's normalizer, or by the merges of its model.
    spelled = {i: read(list(control[i])) for i in {*ids} & control.keys()}
    return [token for i in ids for token in spelled.get(i, [i]) if token not in control]


def _places(word: str, text: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def prompt_ids(tokenizer: Tokenizer, parts: Sequence[tuple[str, bool]], whole: str) -> list[int]:
    """Token ids of a prompt that a chat template may surround.

    Args:
        parts: the texts that make up the prompt, and whether each is the template's own.
        whole: the prompt as the template renders it.
    """
    control = control_tokens(tokenizer)
    ids = template_text_ids(tokenizer, whole)
    wanted = [
        i for text, own in parts if own for i in template_text_ids(tokenizer, text) if i in control
    ]
    if [i for i in ids if i in control] == wanted:
        return ids
    ids, data = [], ""  # data: the characters since the last control token
    for text, own in parts:
        for token in template_text_ids(tokenizer, text) if own else ():
            if token in control and control[token] in text:
                before, _, text = text.partition(control[token])
                ids += [*plain_ids(tokenizer, data + before), token]
                data = ""
        data += text
    return ids + plain_ids(tokenizer, data)


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """The token that starts every sequence: BOS, or none."""
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def pad_id(tokenizer: Tokenizer) -> int:
    """The padding token; 0 if the tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def render_chat(tokenizer: Tokenizer, turns: Sequence[Mapping[str, str]]) -> str:
    """A conversation in the model's chat template, up to the assistant's next turn.

    Raises:
        ModelError: the template raises, takes too long, writes too much, or is no text.
    """
    try:
        with _time_limit(TEMPLATE_S):
            text = str(
                tokenizer.apply_chat_template([*turns], tokenize=False, add_generation_prompt=True)
            )
        text.encode()
        if len(text) > TEMPLATE_CHARACTERS + sum(len(turn["content"]) for turn in turns):
            raise ValueError(f"it writes {len(text):,} characters")
    except Exception as error:  # a template raises whatever its author chose, or the sandbox
        raise _template_error(first_line(error)) from error
    return text


def _template_error(reason: str) -> ModelError:
    return ModelError(
        f"the model's chat template cannot be used: {reason.rstrip('.')}.",
        hint="Correct chat_template in the model's tokenizer_config.json or *.jinja file.",
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in Python code of this thread that takes longer."""
    # Templates run as Python code, and no other means ends a loop in a thread of this process.
    end = time.monotonic() + seconds

    def trace(*_: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it takes longer than {seconds:g} s")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def chat_or_plain(tokenizer: Tokenizer, prompt: str) -> str:
    """``prompt`` in the model's chat template, if it has one; raises ModelError."""
    if not tokenizer.chat_template:
        return prompt
    return render_chat(tokenizer, [{"role": "user", "content": prompt}])


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What surrounds a text that a model reads.

    Attributes:
        before, after: token ids; ``before`` begins with BOS.
        glue: a space that precedes the text, or nothing.
        end: the characters that an answer follows: of a chat template, from its last control token.
        own: whether ``end`` is the template's own text.
    """

    before: list[int]
    glue: str
    after: list[int]
    end: str
    own: bool


def around_text(
    tokenizer: Tokenizer, template: str, *, chat: bool = True, question: str = ""
) -> Surroundings:
    """What surrounds a text in ``template``, which holds ``{text}`` once.

    Args:
        chat: whether the model's chat template surrounds it in turn (see ``chat_or_plain``).
        question: replaces ``{question}``, as data.

    Raises:
        ModelError: the chat template cannot be used.
    """
    whole, own = template, MARK
    if chat:
        whole, own = chat_or_plain(tokenizer, template), chat_or_plain(tokenizer, MARK)
        if (whole.count("{text}"), own.count(MARK)) != (1, 1):
            raise _template_error("it must hold a user's message exactly once, unchanged")
    before, after = (part.replace(QUESTION, question) for part in whole.split("{text}"))
    given = (part.replace(QUESTION, question) for part in template.split("{text}"))
    given_before, given_after = given
    own_before, _, own_after = own.partition(MARK)
    glue = " " if before.endswith(" ") else ""
    opening = prompt_ids(
        tokenizer,
        [(own_before, True), (given_before.removesuffix(" "), False)],
        before.removesuffix(" "),
    )
    if opening[:1] != start_ids(tokenizer):
        opening = start_ids(tokenizer) + opening
    closing = prompt_ids(tokenizer, [(given_after, False), (own_after, True)], after)
    control = control_tokens(tokenizer)
    last = [i for i in template_text_ids(tokenizer, own_after) if i in control][-1:]
    end = "".join(own_after.rpartition(control[last[0]])[1:]) if last else after
    return Surroundings(opening, glue, closing, end, bool(last))


def label_ids(
    tokenizer: Tokenizer, prompt: str, labels: Sequence[str], *, own: bool = False
) -> tuple[int, ...]:
    """First token of each label word when it follows ``prompt``.

    A space precedes the word, except after a line break, as at the end of a chat template.

    Args:
        own: whether ``prompt`` is a chat template's own text.

    Raises:
        ScenarioError: a word has no token, two words share their first token, or there are too many
            for a prompt of this length.
    """
    glue = "" if not prompt or prompt[-1].isspace() else " "
    control = control_tokens(tokenizer).keys()
    if own:
        prefix = template_text_ids(tokenizer, prompt)
        joined = [template_text_ids(tokenizer, prompt + glue + word) for word in labels]
    else:
        end, prefix = _label_context(tokenizer, prompt, len(labels))
        joined = data_rows(tokenizer, [end + glue + word for word in labels])
    found: dict[int, str] = {}
    for word, ids in zip(labels, joined, strict=True):
        new = ids[len(prefix) :]
        if ids[: len(prefix)] != prefix or not new or not control.isdisjoint(new):
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


def _label_context(tokenizer: Tokenizer, prompt: str, labels: int) -> tuple[str, list[int]]:
    """The end of ``prompt`` that decides on the token after it, and its ids.

    Tokenizers read locally, so its last tokens are those of the whole prompt.
    """
    whole = plain_ids(tokenizer, prompt)
    if labels * len(whole) <= MAX_LABEL_WORK:
        length = LABEL_CONTEXT
        while length < len(prompt) and labels * length <= MAX_LABEL_WORK:
            ids = plain_ids(tokenizer, prompt[-length:])
            if len(ids) > SETTLED and ids[-SETTLED:] == whole[-SETTLED:]:
                return prompt[-length:], ids
            length *= 2
        if labels * len(prompt) <= MAX_LABEL_WORK:
            return prompt, whole
    raise ScenarioError(
        f"{labels} labels after a prompt of {len(whole)} tokens are too much work.",
        hint="Shorten the prompt, or ask for fewer labels.",
    )
