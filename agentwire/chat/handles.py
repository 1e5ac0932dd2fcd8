"""Latent handles: text that stands for a payload which a sender keeps.

A framework passes text between its agents, so a handle is text: ``<|agentwire:…|>`` around 192
random bits. It cannot be guessed, it is good for its owner alone, on the wire that it was made for,
and for a limited time; whoever holds somebody else's learns nothing but that it is not theirs.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agentwire.chat.errors import FORBIDDEN, NOT_FOUND, HttpError
from agentwire.runtime.reply import KeptPayload

TOKEN_BYTES: Final = 24
_MARK: Final = r"[\u200b-\u200d\u2060\ufeff]*"
HANDLE: Final = re.compile(
    rf"(?:<|&lt;)?{_MARK}\|{_MARK}agentwire:([A-Za-z0-9_-]{{1,128}})\|{_MARK}(?:>|&gt;)?"
)
"""A handle as it may come back: some frameworks put a joiner of no width into whatever looks like a
control token, or escape it."""
REMAINS: Final = "|agentwire:"
"""What a text still holds if a handle in it was damaged."""
TTL_S: Final = 1800.0
MOST: Final = 10_000
MOST_OF_ONE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Handle:
    """What a handle stands for.

    Attributes:
        token: the random part.
        owner: name of the API key that it was made with.
        kept: the payload in its sender's process, on its wire.
        bridge: name of the bridge that made it; None: the text was kept.
        until: monotonic seconds.
    """

    token: str
    owner: str
    kept: KeptPayload
    bridge: str | None
    until: float

    @property
    def text(self) -> str:
        """What is passed on."""
        return f"<|agentwire:{self.token}|>"


class HandleStore:
    """All handles of a gateway: bounded for each owner and altogether; the oldest go first.

    Args:
        clock: monotonic seconds.
        ttl_s: how long a handle is good.
        most, most_of_one: handles altogether, and of one owner.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        ttl_s: float = TTL_S,
        most: int = MOST,
        most_of_one: int = MOST_OF_ONE,
    ) -> None:
        self._clock = clock
        self._ttl = ttl_s
        self._most = most
        self._most_of_one = most_of_one
        self._handles: OrderedDict[str, Handle] = OrderedDict()
        self._owned: dict[str, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, owner: str, kept: KeptPayload, bridge: str | None) -> Handle:
        """A new handle; an owner who has too many loses the oldest of his own."""
        self._sweep()
        token = secrets.token_urlsafe(TOKEN_BYTES)
        handle = Handle(token, owner, kept, bridge, self._clock() + self._ttl)
        owned = self._owned.setdefault(owner, OrderedDict())
        while len(owned) >= self._most_of_one:
            self.drop(next(iter(owned)))
        while len(self._handles) >= self._most:
            self.drop(next(iter(self._handles)))
        self._handles[token] = handle
        self._owned.setdefault(owner, OrderedDict())[token] = None
        return handle

    def get(self, token: str, owner: str) -> Handle:
        """The handle, if it is the owner's and still good.

        Raises:
            HttpError: 404: there is none, or its time is up; 403: it is somebody else's.
        """
        self._sweep()
        handle = self._handles.get(token)
        if handle is None:
            raise expired()
        if handle.owner != owner:
            raise HttpError(
                403, FORBIDDEN, "This handle belongs to another API key.", code="handle_forbidden"
            )
        return handle

    def drop(self, token: str) -> None:
        """Forgets a handle: what it stood for is gone."""
        handle = self._handles.pop(token, None)
        if handle is None:
            return
        owned = self._owned[handle.owner]
        del owned[token]
        if not owned:
            del self._owned[handle.owner]

    def _sweep(self) -> None:
        now = self._clock()
        while self._handles:  # they expire in the order in which they were made
            oldest = next(iter(self._handles.values()))
            if oldest.until > now:
                break
            self.drop(oldest.token)


def expired() -> HttpError:
    return HttpError(
        404,
        NOT_FOUND,
        "There is no such handle, or it has expired: let the sender read the text again.",
        code="handle_not_found",
    )


def wrong_wire(handle: Handle, joint: str | None = None) -> HttpError:
    """
    Args:
        joint: name of the wire that the handle's sender shares with others.
    """
    receiver, wire = handle.kept.receiver, f"{handle.kept.sender}->{handle.kept.receiver}"
    models = f"the model {receiver!r} or {wire!r}"
    if joint is not None:
        models = f"the model {joint!r}, beside a handle of each other sender"
    return HttpError(
        403,
        FORBIDDEN,
        f"This handle was made on {wire}: only {receiver} can read it, as {models}.",
        code="handle_forbidden",
    )
