"""Payloads kept for later requests.

A kept payload is named by the request id that it was made under, and only its own client can name
it. It expires after a time, when newer payloads need the room, and with the process. A request for
an expired payload is refused with EXPIRED.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

KEPT_BYTES: Final = 64 * 1024 * 1024
KEPT_S: Final = 3600.0


class KeptKey(NamedTuple):
    origin: str
    request_id: bytes


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One kept row.

    Attributes:
        text: the source text, for the text channel.
        payload: float16 [M, d]; None where no soft tokens could be made.
        bridge: fingerprint of the bridge that made them, or "".
        reason: why there are none, or "".
        until: expiry in monotonic seconds.
        owner: whose room it takes.
    """

    text: str
    payload: npt.NDArray[np.float16] | None
    bridge: str
    reason: str
    until: float
    owner: str = ""

    @property
    def size(self) -> int:
        return len(self.text) + (0 if self.payload is None else self.payload.nbytes)


class KeptPayloads:
    """The store: entries live for ``seconds``. When it is full, the owner that takes the most room
    loses its oldest entry, so an owner within its share loses nothing to the others.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES, seconds: float = KEPT_S) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._items: OrderedDict[KeptKey, KeptRow] = OrderedDict()
        self._owned: dict[str, OrderedDict[KeptKey, None]] = {}
        self._bytes: Counter[str] = Counter()  # by owner

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
        owner: str = "",
    ) -> None:
        self._drop(key)
        kept = KeptRow(text, payload, bridge, reason, now + self._seconds, owner)
        self._items[key] = kept
        self._owned.setdefault(owner, OrderedDict())[key] = None
        self._bytes[owner] += kept.size
        while self._items and next(iter(self._items.values())).until <= now:
            self._drop(next(iter(self._items)))
        while self._bytes.total() > self._max_bytes:
            largest = max(self._bytes, key=self._bytes.__getitem__)
            self._drop(next(iter(self._owned[largest])))

    def get(self, key: KeptKey, now: float) -> KeptRow | None:
        """The entry, or None if it is missing or expired."""
        kept = self._items.get(key)
        if kept is not None and kept.until <= now:
            self._drop(key)
            return None
        return kept

    def _drop(self, key: KeptKey) -> None:
        kept = self._items.pop(key, None)
        if kept is not None:
            self._bytes[kept.owner] -= kept.size
            del self._owned[kept.owner][key]
            if not self._owned[kept.owner]:
                del self._owned[kept.owner], self._bytes[kept.owner]
