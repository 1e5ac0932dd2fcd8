"""What a broker takes in, written down so that the same broker can be fed it again.

``bus.jsonl`` in a run's folder: one JSON object a line, in order: the bus itself, then each message
(who sent it, header and rows as they came), each command of the owner, each broken connection and
each look at the time limits, with every reading of the clock. Texts, soft tokens and scores are
not kept, only how many bytes they had; the run's token is replaced.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TextIO

from agentwire.bus.flow import RoutingLimits
from agentwire.bus.stimuli import Expect, Forget, Invite, PeerId, Stimulus
from agentwire.bus.transport import Frames
from agentwire.errors import RemoteProtocolError
from agentwire.wire.codec import decode, encode
from agentwire.wire.messages import (
    Encode,
    Hello,
    Message,
    Piece,
    Result,
    Soft,
    Text,
)
from agentwire.wire.states import Timing

FILE_NAME: Final = "bus.jsonl"
TOKEN: Final = "recorded"
"""Stands for the run's token in a recording."""


class BusRecorder:
    """Writes a recording. All but ``close`` is called in the broker's thread.

    Args:
        path: the file; an earlier session of the run is replaced.
        token: of the run.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._token = token
        self._lock = threading.Lock()
        self._entry: dict[str, Any] | None = None
        self._readings: list[float] = []
        self._file: TextIO | None = path.open("w", encoding="utf-8")

    def clock(self) -> float:
        """Monotonic seconds; the reading belongs to what was begun last."""
        now = time.monotonic()
        self._readings.append(now)
        return now

    def opened(
        self,
        run: bytes,
        wires: Mapping[str, tuple[str, str]],
        agents: list[str],
        limits: RoutingLimits,
        timing: Timing,
        now: float,
    ) -> None:
        """The bus has begun."""
        self._begin(
            bus={
                "run": run.hex(), "wires": {name: list(ends) for name, ends in wires.items()},
                "agents": agents, "limits": asdict(limits), "timing": asdict(timing), "now": now,
            }
        )  # fmt: skip

    def came(self, peer: PeerId, frames: Frames, key: str) -> None:
        """A message has come."""
        self._begin(peer=peer.hex(), key=key, frames=self._without_content(frames))

    def commanded(self, command: Stimulus) -> None:
        """The owner has said something."""
        match command:
            case Expect(name, epoch):
                self._begin(command=["expect", name, epoch])
            case Forget(name, epoch):
                self._begin(command=["forget", name, epoch])
            case Invite(name):
                self._begin(command=["invite", name])
            case _:
                pass

    def broke(self, peer: PeerId, reason: str) -> None:
        """A connection has broken."""
        self._begin(peer=peer.hex(), broke=reason)

    def ticked(self, now: float) -> None:
        """Time limits were looked at."""
        self._begin(tick=now)

    def ended(self, metrics: Mapping[str, int]) -> None:
        """The bus ends with these figures."""
        self._begin(metrics=dict(metrics))
        self._begin()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _begin(self, **entry: Any) -> None:
        before, self._entry = self._entry, entry
        readings, self._readings = self._readings, []
        if before is None:
            return
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps({**before, "clock": readings}) + "\n")

    def _without_content(self, frames: Frames) -> Sequence[str | int]:
        """Header and rows in base64, and the body's; or its size where it is content."""
        try:
            envelope, message = decode(frames)
            kept = blank(message, self._token)
            header, rows, body = encode(kept, envelope)
        except (RemoteProtocolError, ValueError):
            # What is no message is nothing again, without what it might hold.
            return [_text(bytes(frame[:1]) * 2) for frame in frames][:4]
        content = isinstance(kept, Encode | Soft | Text | Result | Piece)
        return [_text(header), _text(rows), len(body) if content else _text(body)]


def _text(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode()


def body_of(size: int) -> bytes:
    """The body that stands for so many bytes of content."""
    return bytes(size)


def blank(message: Message, token: str) -> Message:
    """The message with zeros for its content, and without the run's token."""
    match message:
        case Hello():
            return replace(message, token=TOKEN if message.token == token else "other")
        case Encode() | Text() | Piece():
            return replace(message, texts=tuple("\0" * len(t.encode()) for t in message.texts))
        case Soft():
            payload = message.payload._replace(data=bytes(len(message.payload.data)))
            return replace(message, payload=payload)
        case Result():
            texts = tuple("\0" * len(t.encode()) for t in message.texts)
            return replace(message, scores=bytes(len(message.scores)), texts=texts)
    return message
