"""Conversations: from the JSON that a client sends to the token ids that a model reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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
    """The conversation in a row whose task has the form ``chat``.

    Raises:
        RemoteProtocolError: not a JSON array of ``{"role": …, "content": …}``.
    """

    def refuse(what: str) -> RemoteProtocolError:
        return RemoteProtocolError(NackCode.MALFORMED, f"not a conversation: {what}")

    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise refuse("no JSON") from None
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_MESSAGES:
        raise refuse(f"a list of 1 to {MAX_MESSAGES} messages is")
    messages = []
    for entry in raw:
        if not isinstance(entry, dict) or entry.keys() != {"role", "content"}:
            raise refuse("a message has role and content, and nothing else")
        role, content = entry["role"], entry["content"]
        if role not in ROLES or not isinstance(content, str):
            raise refuse(f"role is one of {', '.join(sorted(ROLES))}; content is text")
        messages.append(ChatMessage(role, content))
    return messages


def chat_ids(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Token ids of a conversation, up to where the assistant speaks next.

    The template is rendered around placeholders and the contents are read on their own, so that
    what looks like a control token in a message stays plain characters: nobody can end a turn and
    speak as somebody else. A model without a template reads ``Role: content`` lines.

    Raises:
        RemoteProtocolError: the model's template does not take this conversation.
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
    """Pairs of template text and the content that follows it; the last content is empty."""
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
                f"this model's chat template has no place for a {message.role} message here",
            )
        pieces.append((before, message.content))
    return [*pieces, (rest, "")]


def generation_ids(tokenizer: Tokenizer, text: str, task: TaskSpec) -> list[int]:
    """What a model reads before it answers one text in its own words (``task.form``).

    Raises:
        RemoteProtocolError: see ``parse_chat`` and ``chat_ids``.
    """
    if task.form == "chat":
        return chat_ids(tokenizer, parse_chat(text))
    if task.form == "plain":
        before, after = task.text_prompt.split("{text}")
        glue = " " if before.endswith(" ") else ""
        opening = start_ids(tokenizer) + plain_ids(tokenizer, before.removesuffix(" "))
    else:
        opening, glue, after = around_text(tokenizer, task.text_prompt)
    # A task's text is cut as it is for scoring; what a caller completes is his own affair.
    longest = MAX_TEXT_TOKENS if task.form == "text" else None
    (row,) = text_ids(tokenizer, [text], glue, max_tokens=longest)
    return [*opening, *row, *plain_ids(tokenizer, after)]


def check_room(model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """
    Raises:
        RemoteProtocolError: a row and its answer are longer than the model can see.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(row) for row in rows)
    if room is not None and longest + max_new_tokens > room:
        raise RemoteProtocolError(
            NackCode.TOO_LARGE,
            f"{longest} tokens and an answer of {max_new_tokens} are more than the {room} tokens "
            "that this model can see",
        )


def _role(message: ChatMessage) -> str:
    return {"developer": "system", "tool": "user"}.get(message.role, message.role)
