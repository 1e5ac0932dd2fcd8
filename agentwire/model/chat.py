"""Conversations: from a client's JSON to token ids."""

from __future__ import annotations

from collections.abc import Sequence

from agentwire.errors import ModelError, NackCode, RemoteProtocolError
from agentwire.model.prompting import read_texts, text_limit
from agentwire.task.tokens import (
    Tokenizer,
    around_text,
    plain_ids,
    render_chat,
    start_ids,
    template_text_ids,
)
from agentwire.task.transcript import ChatMessage, parse_chat, quote_roles, role_line
from agentwire.wire.messages import TaskSpec


def chat_ids(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Token ids of a conversation, up to the assistant's next turn.

    The template is rendered with placeholders, and the contents are tokenized separately. So text
    that looks like a control token stays plain characters, and no message can end its turn. A model
    without a template reads ``Role: content`` lines, which no content can forge (``quote_roles``).

    Raises:
        RemoteProtocolError: the model's template refuses this conversation.
    """
    ids: list[int] = []
    for fixed, content in _pieces(tokenizer, messages):
        ids += template_text_ids(tokenizer, fixed) if fixed else []
        ids += plain_ids(tokenizer, content) if content else []
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
            rest = render_chat(tokenizer, turns)
        except ModelError as error:
            raise RemoteProtocolError(NackCode.UNSUPPORTED, error.message) from None
    else:
        messages = [ChatMessage(m.role, quote_roles(m.content)) for m in messages]
        lines = [role_line(_role(m), mark) for m, mark in zip(messages, marks, strict=True)]
        rest = "\n".join([*lines, "Assistant:"])
    pieces = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise RemoteProtocolError(
                NackCode.UNSUPPORTED,
                f"this model's chat template does not allow a {message.role} message here",
            )
        pieces.append((before, message.content))
    if any(mark in part for part in [*(before for before, _ in pieces), rest] for mark in marks):
        raise RemoteProtocolError(
            NackCode.UNSUPPORTED, "this model's chat template repeats or reorders messages"
        )
    return [*pieces, (rest, "")]


def generation_ids(
    tokenizer: Tokenizer, text: str, task: TaskSpec, context: int | None = None, question: str = ""
) -> tuple[list[int], int]:
    """What a model reads before it answers one text, and how many tokens of it are left out.

    ``question`` replaces ``{question}`` in the task's text prompt.

    Raises:
        RemoteProtocolError: as ``parse_chat``, ``chat_ids`` and ``text_limit``.
    """
    if task.form == "chat":
        return chat_ids(tokenizer, parse_chat(text)), 0
    around = around_text(tokenizer, task.text_prompt, chat=task.form == "text", question=question)
    # A task's text is cut as for scoring; text that a caller wants completed is not.
    longest = None
    if task.form == "text":
        answer = max(1, task.max_new_tokens)
        longest = text_limit(context, len(around.before) + len(around.after), answer)
    (row,), (unread,) = read_texts(tokenizer, [text], around.glue, longest)
    return [*around.before, *row, *around.after], unread


def generation_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    task: TaskSpec,
    context: int | None,
    questions: Sequence[str],
) -> tuple[list[list[int]], list[int]]:
    """``generation_ids`` of each text with its question: the ids, and the tokens left out."""
    pairs = zip(texts, questions, strict=True)
    given = [generation_ids(tokenizer, text, task, context, asks) for text, asks in pairs]
    return [ids for ids, _ in given], [unread for _, unread in given]


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
