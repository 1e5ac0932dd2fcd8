"""From a conversation to what is asked: what the sender reads, what the receiver is asked.

The rules:

* An agent that is asked directly reads the whole conversation, in its own chat template.
* Over a wire the sender reads what users and assistants said; a conversation of one turn is that
  text alone. System messages are instructions for whoever answers, so they become the receiver's
  prompt where it answers in free text, and are left out where it answers with a label: a bridge
  is trained for one question.
* Of senders that share a wire each reads one text part of the conversation's only turn, in the
  wire's order. What is one text, each reads as a run of the scenario would let it: whole, or its
  share (``WireSpec.reads``).
* A handle in any message stands for what its sender has read; the words around it are the prompt.
  Over a shared wire there is one of each sender, in any order, or none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentwire.chat.errors import INVALID, HttpError
from agentwire.chat.handles import HANDLE, REMAINS, expired
from agentwire.chat.requests import Message
from agentwire.scenario.shares import texts_for
from agentwire.spec.scenario import WireSpec

INSTRUCTIONS: Final = frozenset({"system", "developer"})
DEFAULT_PROMPT: Final = "Answer:"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a client said.

    Attributes:
        tokens: of the handles that it holds, each once.
        messages: (role, text), handles taken out.
        parts: texts of the parts of the only turn; empty: it has not several, or there are more
            turns.
    """

    tokens: tuple[str, ...]
    messages: tuple[tuple[str, str], ...]
    parts: tuple[str, ...] = ()

    @property
    def token(self) -> str | None:
        """Of the only handle; None: it holds none.

        Raises:
            HttpError: 400, it holds several.
        """
        if len(self.tokens) > 1:
            raise HttpError(
                400,
                INVALID,
                f"{len(self.tokens)} handles in one conversation: only a receiver whose bridges "
                "were trained for that reads several payloads at once, as the model `a+b->c`.",
                code="several_handles",
                param="messages",
            )
        return self.tokens[0] if self.tokens else None

    @property
    def as_chat(self) -> str:
        """For an agent that reads it itself: JSON, as tasks of the form ``chat`` want it."""
        return json.dumps(
            [{"role": role, "content": text} for role, text in self.messages], ensure_ascii=False
        )

    @property
    def said(self) -> str:
        """What the sender of a wire reads."""
        turns = [(r, t) for r, t in self.messages if r not in INSTRUCTIONS and t.strip()]
        if len(turns) == 1:
            return turns[0][1]
        return "\n".join(f"{role.capitalize()}: {text}" for role, text in turns)

    def for_each(self, wires: Sequence[WireSpec]) -> tuple[str, ...]:
        """What each sender of a shared wire reads.

        Raises:
            HttpError: 400, it has several text parts, and not one for each sender.
        """
        if not self.parts:
            return tuple(texts_for(self.said, wires[0]))
        if len(self.parts) != len(wires):
            senders = ", ".join(wire.sender for wire in wires)
            raise HttpError(
                400,
                INVALID,
                f"{len(self.parts)} text parts for {len(wires)} senders: give one for each of "
                f"{senders}, in that order, or one text for all.",
                code="invalid_value",
                param="messages",
            )
        return self.parts

    @property
    def instructions(self) -> str:
        return "\n".join(t.strip() for r, t in self.messages if r in INSTRUCTIONS and t.strip())

    def prompt(self, *, beside_handle: bool) -> str:
        """What a receiver is asked that answers in free text."""
        parts = [self.instructions]
        if beside_handle:
            parts.append(self.said.strip())
        return "\n".join(part for part in parts if part) or DEFAULT_PROMPT

    def unread(self, *, beside_handle: bool) -> list[str]:
        """What nobody reads where the answer is a label."""
        found = ["system"] if self.instructions else []
        return [*found, "text"] if beside_handle and self.said.strip() else found


def conversation(messages: Sequence[Message]) -> Conversation:
    """
    Raises:
        HttpError: 404, it holds a handle that is damaged.
    """
    tokens = dict.fromkeys(token for m in messages for token in HANDLE.findall(m.text))
    said = tuple((message.role, HANDLE.sub("", message.text)) for message in messages)
    if any(REMAINS in text for _, text in said):
        raise expired()  # a damaged handle is no text for anybody to read
    turns = [m for m in messages if m.role not in INSTRUCTIONS and m.text.strip()]
    parts = tuple(turns[0].parts) if len(turns) == 1 and len(turns[0].parts) > 1 else ()
    return Conversation(tuple(tokens), said, parts)
