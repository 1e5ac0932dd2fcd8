"""Several payloads read as one: which bridges may stand together, and in which order. No IO.

Soft tokens of two bridges that were trained apart mean nothing side by side: each has taught the
receiver's input what to be like when it stands there alone. So payloads are put together only where
their bridges were trained together, in the order of that training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agentwire.agent.fallback import knows_any
from agentwire.agent.kept import Kept
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.spec.agent import JointBridges
from agentwire.wire.messages import TaskSpec

MOST: Final = 16
"""Payloads that are read as one."""


@dataclass(frozen=True, slots=True)
class Together:
    """What a row reads: float16 [sum of M, d], of the set of bridges ``name``."""

    name: str
    payload: npt.NDArray[np.float16]


class Joint:
    """The sets of bridges that an agent reads together."""

    def __init__(self, sets: Sequence[JointBridges]) -> None:
        self._sets = {one.bridges: one for one in sets}

    def read(self, names: str, task: TaskSpec, find: Callable[[bytes], Kept | None]) -> Together:
        """The payloads of these names (hex ids with spaces between), one after the other.

        Args:
            find: what is held here under an id.

        Raises:
            RemoteProtocolError: these are no names, one is no longer here, or no bridges were
                trained to be read so.
        """
        parts = [_payload(name, find) for name in _ids(names)]
        bridges = tuple(kept.bridge for kept, _ in parts)
        found = self._sets.get(bridges)
        if found is None:
            raise RemoteProtocolError(
                NackCode.BRIDGE_MISMATCH,
                f"no bridges here were trained to have these {len(parts)} payloads read together, "
                "in this order: `agentwire train` a scenario whose wire says `from: [...]`",
            )
        if not knows_any(found.prompts, task):
            code = NackCode.PROMPT_MISMATCH if task.labels else NackCode.UNSUPPORTED
            raise RemoteProtocolError(
                code, f"the bridges {found.name} are not trained for {task.name}"
            )
        return Together(found.name, np.concatenate([payload for _, payload in parts]))


def _ids(names: str) -> list[bytes]:
    try:
        ids = [bytes.fromhex(name) for name in names.split(" ")]
    except ValueError:
        ids = []
    if not 0 < len(ids) <= MOST:
        raise RemoteProtocolError(NackCode.MALFORMED, "not the names of payloads")
    return ids


def _payload(
    request_id: bytes, find: Callable[[bytes], Kept | None]
) -> tuple[Kept, npt.NDArray[np.float16]]:
    kept = find(request_id)
    if kept is None or kept.payload is None:
        raise RemoteProtocolError(NackCode.EXPIRED, "a payload is not held here, or no longer")
    return kept, kept.payload
