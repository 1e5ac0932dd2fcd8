"""Conversations: parsed from JSON, and as ``Role: text`` lines for models without a template."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from agentwire.errors import NackCode, RemoteProtocolError

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_MESSAGES: Final = 1024
ROLE: Final = re.compile(r"(system|developer|user|human|assistant|model|tool):")


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


def role_line(role: str, text: str) -> str:
    return f"{role.capitalize()}: {text}"


def quote_roles(text: str) -> str:
    """``text`` with ``> `` before each further line that looks like another message's."""
    first, *rest = text.splitlines(keepends=True) or [""]
    return first + "".join(f"> {line}" if _names_role(line) else line for line in rest)


def _names_role(line: str) -> bool:
    """Whether a line begins with a role, as a reader sees it: without spaces, markup and case."""
    shown = unicodedata.normalize("NFKC", line)
    shown = "".join(c for c in shown if unicodedata.category(c)[0] not in "ZCM" and c not in "*_#`")
    return ROLE.match(shown.lower()) is not None
