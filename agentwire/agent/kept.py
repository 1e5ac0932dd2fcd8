"""Payloads that a sender keeps for a later request (mode ``keep``): bounded, and not for ever.

What was kept is named by the request id that it was made under, and only for the client that it was
made for. It goes on over any of the sender's wires whose bridge is the one that made it. It is gone
when its time is up, when newer ones need the room, and with the process: the answer is
EXPIRED then, never another payload.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

KEPT_BYTES: Final = 64 * 1024 * 1024
KEPT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class KeptKey:
    """Whose it is: nobody else can name it."""

    origin: str
    request_id: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept row.

    Attributes:
        text: what the soft tokens were made of, for the text channel.
        payload: float16 [M, d]; None where no soft tokens could be made.
        bridge: fingerprint of the bridge that made them, or "".
        reason: why there are none, or "".
        until: monotonic seconds.
    """

    text: str
    payload: npt.NDArray[np.float16] | None
    bridge: str
    reason: str
    until: float

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return len(self.text) + (0 if self.payload is None else self.payload.nbytes)


class KeptPayloads:
    """The store; the oldest goes first.

    Args:
        max_bytes: of texts and payloads.
        seconds: how long each is kept.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES, seconds: float = KEPT_S) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._items: OrderedDict[KeptKey, Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(
        self,
        key: KeptKey,
        now: float,
        *,
        text: str,
        payload: npt.NDArray[np.float16] | None = None,
        bridge: str = "",
        reason: str = "",
    ) -> None:
        """Keeps a row from ``now`` (monotonic seconds) on."""
        self._drop(key)
        kept = self._items[key] = Kept(text, payload, bridge, reason, now + self._seconds)
        self._bytes += kept.size
        for oldest in list(self._items):
            if self._items[oldest].until > now and self._bytes <= self._max_bytes:
                break
            self._drop(oldest)

    def get(self, key: KeptKey, now: float) -> Kept | None:
        """What was kept; None if it is not there, or no longer."""
        kept = self._items.get(key)
        if kept is not None and kept.until <= now:
            self._drop(key)
            return None
        return kept

    def _drop(self, key: KeptKey) -> None:
        kept = self._items.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size
