"""Conversations: from a client's JSON to token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.model.prompting import (
    MAX_TEXT_TOKENS,
    Tokenizer,
    around_text,
    plain_ids,
    start_ids,
    text_ids,
)
from agentwire.wire.messages import TaskSpec

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_MESSAGES: Final = 1024


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


def parse_chat(text: str) -> list[ChatMessage]:
    """Parses ``[{"role": …, "content": …}]``; raises RemoteProtocolError for anything else."""

    def refuse(what: str) -> RemoteProtocolError:
        return RemoteProtocolError(NackCode.MALFORMED, f"not a conversation: {what}")

    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise refuse("invalid JSON") from None
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_MESSAGES:
        raise refuse(f"expected a list of 1 to {MAX_MESSAGES} messages")
    messages = []
    for entry in raw:
        if not isinstance(entry, dict) or entry.keys() != {"role", "content"}:
            raise refuse("a message must have role and content, and nothing else")
        role, content = entry["role"], entry["content"]
        if role not in ROLES or not isinstance(content, str):
            raise refuse(f"role must be one of {', '.join(sorted(ROLES))}, and content a string")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise refuse("half of a surrogate pair is no character") from None
        messages.append(ChatMessage(role, content))
    return messages


def chat_ids(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Token ids of a conversation, up to the assistant's next turn.

    The template is rendered with placeholders, and the contents are tokenized separately. So text
    that looks like a control token stays plain characters, and no message can end its turn. A model
    without a template reads ``Role: content`` lines.

    Raises:
        RemoteProtocolError: the model's template refuses this conversation.
    """
    ids: list[int] = []
    for fixed, content in _pieces(tokenizer, messages):
        ids += plain_ids(tokenizer, fixed) if fixed else []
        if content:
            read = tokenizer(content, add_special_tokens=False, split_special_tokens=True)
            ids += list(read["input_ids"])
    start = start_ids(tokenizer)
    return ids if ids[: len(start)] == start else start + ids


def _pieces(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """Template text and the content that follows it; the last content is empty."""
    marks = [f"\ue000{place}\ue001" for place in range(len(messages))]
    if tokenizer.chat_template:
        turns = [
            {"role": _role(message), "content": mark}
            for message, mark in zip(messages, marks, strict=True)
        ]
        try:
            rest = str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # a template raises whatever its author chose
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RemoteProtocolError(
                NackCode.UNSUPPORTED,
                f"this model's chat template refuses the conversation: {first}",
            ) from None
    else:
        lines = [
            f"{_role(m).capitalize()}: {mark}\n" for m, mark in zip(messages, marks, strict=True)
        ]
        rest = "".join(lines) + "Assistant:"
    pieces = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise RemoteProtocolError(
                NackCode.UNSUPPORTED,
                f"this model's chat template does not allow a {message.role} message here",
            )
        pieces.append((before, message.content))
    return [*pieces, (rest, "")]


def generation_ids(tokenizer: Tokenizer, text: str, task: TaskSpec) -> list[int]:
    """What a model reads before it answers one text; raises as ``parse_chat`` and ``chat_ids``."""
    if task.form == "chat":
        return chat_ids(tokenizer, parse_chat(text))
    if task.form == "plain":
        before, after = task.text_prompt.split("{text}")
        glue = " " if before.endswith(" ") else ""
        opening = start_ids(tokenizer) + plain_ids(tokenizer, before.removesuffix(" "))
    else:
        opening, glue, after = around_text(tokenizer, task.text_prompt)
    # A task's text is cut as for scoring; text that a caller wants completed is not.
    longest = MAX_TEXT_TOKENS if task.form == "text" else None
    (row,) = text_ids(tokenizer, [text], glue, max_tokens=longest)
    return [*opening, *row, *plain_ids(tokenizer, after)]


def check_length(limit: int | None, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises RemoteProtocolError if a row with its answer exceeds ``limit`` tokens."""
    longest = max(len(row) for row in rows)
    if limit is not None and longest + max_new_tokens > limit:
        raise RemoteProtocolError(
            NackCode.TOO_LARGE,
            f"a prompt of {longest} tokens and an answer of {max_new_tokens} exceed the model's "
            f"limit of {limit} tokens",
        )


def _role(message: ChatMessage) -> str:
    return {"developer": "system", "tool": "user"}.get(message.role, message.role)
