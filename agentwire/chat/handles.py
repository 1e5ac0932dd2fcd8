"""Latent handles: text that stands for a payload which a sender keeps.

Frameworks pass text between agents, so a handle is text: ``<|agentwire:…|>`` around 192 random
bits. It works only for its owner, only on the wire that made it, and only for a limited time.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentwire.chat.errors import ChatError, ErrorKind
from agentwire.runtime.reply import KeptPayload

TOKEN_BYTES: Final = 24
TTL_S: Final = 1800.0
MAX_HANDLES: Final = 10_000
MAX_PER_OWNER: Final = 1_000

# Some frameworks escape whatever looks like a control token, or put zero-width characters into it.
_INVISIBLE: Final = r"[\u200b-\u200d\u2060\ufeff]*"
HANDLE: Final = re.compile(
    rf"(?:<|&lt;)?{_INVISIBLE}\|{_INVISIBLE}agentwire:([A-Za-z0-9_-]{{1,128}})"
    rf"\|{_INVISIBLE}(?:>|&gt;)?"
)
HANDLE_FRAGMENT: Final = "|agentwire:"
"""Text that still contains this after all handles are removed holds a damaged handle."""


@dataclass(frozen=True, slots=True)
class Handle:
    """A handle and the payload that it stands for."""

    token: str
    owner: str  # name of the API key that made it
    kept: KeptPayload
    expires_at: float  # monotonic seconds

    @property
    def text(self) -> str:
        """The handle as agents pass it on."""
        return f"<|agentwire:{self.token}|>"


class HandleStore:
    """All valid handles, with a limit per owner and in total.

    At the total limit the owner with the most handles loses the oldest.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        ttl_s: float = TTL_S,
        max_handles: int = MAX_HANDLES,
        max_per_owner: int = MAX_PER_OWNER,
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_handles = max_handles
        self._max_per_owner = max_per_owner
        self._handles: OrderedDict[str, Handle] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, owner: str, kept: KeptPayload, token: str | None = None) -> Handle:
        """Create a handle, with a random token if none is given. An owner at the limit loses the
        oldest of their own handles."""
        self._drop_expired()
        owned = Counter(handle.owner for handle in self._handles.values())
        if owned[owner] >= self._max_per_owner:
            self._drop_oldest(owner)
        elif len(self._handles) >= self._max_handles:
            self._drop_oldest(owned.most_common(1)[0][0])
        token = token or secrets.token_urlsafe(TOKEN_BYTES)
        handle = Handle(token, owner, kept, self._clock() + self._ttl_s)
        self._handles[token] = handle
        return handle

    def get(self, token: str, owner: str) -> Handle:
        """Raises ChatError if the handle does not exist, has expired or is someone else's."""
        handle = self.find(token)
        if handle is None:
            raise handle_not_found()
        if handle.owner != owner:
            raise handle_forbidden("This handle belongs to another API key.")
        return handle

    def find(self, token: str) -> Handle | None:
        self._drop_expired()
        return self._handles.get(token)

    def drop(self, token: str) -> None:
        """Forget a handle; unknown tokens are ignored."""
        self._handles.pop(token, None)

    def _drop_oldest(self, owner: str) -> None:
        self.drop(next(token for token, one in self._handles.items() if one.owner == owner))

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._handles and next(iter(self._handles.values())).expires_at <= now:
            self._handles.popitem(last=False)  # all have the same lifetime: oldest first


def handle_not_found() -> ChatError:
    return ChatError(
        ErrorKind.NOT_FOUND,
        "The handle does not exist or has expired.",
        hint="Let the sender read the text again.",
        code="handle_not_found",
    )


def handle_forbidden(message: str, *, hint: str | None = None) -> ChatError:
    return ChatError(ErrorKind.FORBIDDEN, message, hint=hint, code="handle_forbidden")


def wrong_wire(handle: Handle, joint: str | None = None) -> ChatError:
    """The model cannot read the handle. ``joint`` names the joint wire that it belongs to."""
    receiver = handle.kept.receiver
    wire = f"{handle.kept.sender}->{receiver}"
    if joint is None:
        hint = f"Use it with the model {receiver!r} or {wire!r}."
    else:
        hint = f"Use it with the model {joint!r}, together with a handle of each other sender."
    return handle_forbidden(
        f"The handle was made on {wire}; only {receiver} can read it.", hint=hint
    )
