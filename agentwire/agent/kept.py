"""Payloads kept for later requests, and sets of them that are read as one.

A kept payload is named by the request id that it was made under, and only its own client can name
it. It expires after a time, when newer payloads need the room, and with the process. A request for
an expired payload is refused with EXPIRED.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from agentwire.agent.agreements import covers_prompt
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.spec.agent import JointBridges
from agentwire.wire.messages import TaskSpec

KEPT_BYTES: Final = 64 * 1024 * 1024
KEPT_S: Final = 3600.0
MAX_JOINT: Final = 16
"""Payloads that one request may read together."""


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


class JointReader:
    """Concatenates kept payloads whose bridges were trained together, in the order of training.

    Soft tokens of bridges that were trained apart mean nothing side by side.
    """

    def __init__(self, sets: Sequence[JointBridges]) -> None:
        self._sets = {one.bridges: one for one in sets}

    def read(
        self, names: str, task: TaskSpec, find: Callable[[bytes], KeptRow | None]
    ) -> tuple[str, npt.NDArray[np.float16]]:
        """The bridge set and the payloads (float16 [sum of M, d]) of these names.

        Args:
            names: request ids in hex, separated by spaces.

        Raises:
            RemoteProtocolError: the names are malformed, a payload is missing, or the bridges were
                not trained together for this task.
        """
        bridges: list[str] = []
        parts: list[npt.NDArray[np.float16]] = []
        for name in _parse_names(names):
            kept = find(name)
            if kept is None or kept.payload is None:
                raise RemoteProtocolError(
                    NackCode.EXPIRED, "a payload is not kept here or has expired"
                )
            bridges.append(kept.bridge)
            parts.append(kept.payload)
        found = self._sets.get(tuple(bridges))
        if found is None:
            raise RemoteProtocolError(
                NackCode.BRIDGE_MISMATCH,
                f"no bridges of this agent were trained to have these {len(parts)} payloads read "
                "together in this order: `agentwire train` a scenario whose wire says "
                "`from: [...]`",
            )
        if not covers_prompt(found.prompts, task):
            code = NackCode.PROMPT_MISMATCH if task.labels else NackCode.UNSUPPORTED
            raise RemoteProtocolError(
                code, f"the bridges {found.name} are not trained for {task.name}"
            )
        return found.name, np.concatenate(parts)


def _parse_names(names: str) -> list[bytes]:
    try:
        ids = [bytes.fromhex(name) for name in names.split(" ")]
    except ValueError:
        ids = []
    if not 0 < len(ids) <= MAX_JOINT:
        raise RemoteProtocolError(NackCode.MALFORMED, "invalid payload names")
    return ids
