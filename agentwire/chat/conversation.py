"""Splits a conversation into what the sender reads and what the receiver is asked.

* An agent that is asked directly reads the whole conversation in its own chat template.
* Over a wire the sender reads the user and assistant messages. A single message is passed without
  its role. System messages become the receiver's prompt for an answer in free text. They are not
  used for an answer in labels, because the bridge was trained for one question.
* A bridge that answers any question reads one document (``Conversation.asked``).
* On a joint wire each sender reads one text part of the only message, in the wire's order. A single
  text is read whole by each sender, or divided between them (``WireSpec.reads``).
* A handle stands for text that its sender has already read; the words around it are the prompt.
  A joint wire takes one handle per sender, in any order, or none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentwire.chat.errors import invalid
from agentwire.chat.handles import HANDLE, HANDLE_FRAGMENT, handle_not_found
from agentwire.chat.requests import ChatMessage
from agentwire.scenario.shares import texts_for
from agentwire.spec.scenario import WireSpec
from agentwire.task.transcript import quote_roles, role_line

SYSTEM_ROLES: Final = frozenset({"system", "developer"})
DEFAULT_PROMPT: Final = "Answer:"


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a client.

    Attributes:
        tokens: tokens of the handles, without duplicates.
        messages: (role, text), with handles removed.
        text_parts: the parts of the only user or assistant message, if there are several parts.
    """

    tokens: tuple[str, ...]
    messages: tuple[tuple[str, str], ...]
    text_parts: tuple[str, ...] = ()

    def chat_json(self, prompt: str | None = None) -> str:
        """The messages as JSON, as tasks of the form ``chat`` need it; the prompt comes last."""
        messages = [{"role": role, "content": text} for role, text in self.messages]
        if prompt and messages[-1]["role"] == "user":  # templates want the roles to alternate
            messages[-1]["content"] += f"\n{prompt}"
        elif prompt:
            messages.append({"role": "user", "content": prompt})
        return json.dumps(messages, ensure_ascii=False)

    @property
    def sender_text(self) -> str:
        """What the sender of a wire reads."""
        turns = [(r, t) for r, t in self.messages if r not in SYSTEM_ROLES and t.strip()]
        if len(turns) == 1:
            return turns[0][1]
        return "\n".join(role_line(role, quote_roles(text)) for role, text in turns)

    def sender_texts(self, wires: Sequence[WireSpec]) -> tuple[str, ...]:
        """What each sender of a joint wire reads."""
        if not self.text_parts:
            return tuple(texts_for(self.sender_text, wires[0]))
        if len(self.text_parts) == len(wires):
            return self.text_parts
        senders = ", ".join(wire.sender for wire in wires)
        raise invalid(
            "messages",
            f"{len(self.text_parts)} text parts for {len(wires)} senders.",
            hint=f"Give one part for each of {senders}, in that order, or one text for all.",
        )

    @property
    def system_text(self) -> str:
        return "\n".join(t.strip() for r, t in self.messages if r in SYSTEM_ROLES and t.strip())

    def prompt(self, *, with_handle: bool) -> str:
        """The receiver's prompt for an answer in free text."""
        parts = [self.system_text]
        if with_handle:
            parts.append(self.sender_text.strip())
        return "\n".join(part for part in parts if part) or DEFAULT_PROMPT

    def asked(self, *, with_handle: bool) -> tuple[str, str, list[str]]:
        """The document, the question, and what no agent reads, for a bridge that answers any
        question. The document is the handle ("" here), else the system message, else the first of
        several user messages; the question is the last user message. Raises ChatError if there is
        none."""
        turns = [(r, t.strip()) for r, t in self.messages if r not in SYSTEM_ROLES and t.strip()]
        users = [i for i, (role, _) in enumerate(turns) if role == "user"]
        document = "" if with_handle else self.system_text
        from_user = not with_handle and not document and len(users) > 1
        if not users or not (with_handle or document or from_user):
            raise invalid(
                "messages",
                "The conversation needs a document and a question about it.",
                hint="Give the document as the system message or the first user message, and the "
                "question as the last user message (or as agentwire.prompt).",
            )
        read = {users[0], users[-1]} if from_user else {users[-1]}
        unread = ["system"] if with_handle and self.system_text else []
        if len(turns) > len(read):
            unread.append("history")
        return turns[users[0]][1] if from_user else document, turns[users[-1]][1], unread

    def unread(self, *, with_handle: bool) -> list[str]:
        """The parts that no agent reads if the answer is a label."""
        found = ["system"] if self.system_text else []
        return [*found, "text"] if with_handle and self.sender_text.strip() else found


def parse_conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """Raises ChatError if a handle is damaged."""
    tokens = dict.fromkeys(token for m in messages for token in HANDLE.findall(m.text))
    texts = tuple((message.role, HANDLE.sub("", message.text)) for message in messages)
    if any(HANDLE_FRAGMENT in text for _, text in texts):
        raise handle_not_found()  # a model must not read a damaged handle as text
    turns = [m for m in messages if m.role not in SYSTEM_ROLES and m.text.strip()]
    parts = turns[0].texts if len(turns) == 1 else []
    return Conversation(tuple(tokens), texts, tuple(parts) if len(parts) > 1 else ())
