"""Records all input of a broker, so that a replay can feed it to the broker's core again.

``bus.jsonl`` in a run's folder has one JSON object per line, in order: the bus itself, then each
message (sender, header and rows as received), each command of the owner, each broken connection
and each check of time limits, with every reading of the clock. Texts, soft tokens and scores are
not kept, only their sizes; the run's token is replaced.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TextIO

from agentwire.bus.core import BusConfig
from agentwire.bus.instructions import Command
from agentwire.bus.transport import Frames, PeerId
from agentwire.errors import RemoteProtocolError
from agentwire.wire import messages as m
from agentwire.wire.codec import decode, encode
from agentwire.wire.limits import LIMITS

FILE_NAME: Final = "bus.jsonl"
TOKEN: Final = "recorded"
"""Replaces the run's token in a recording."""


class BusRecorder:
    """Writes a recording. All methods but ``close`` are called in the broker's thread.

    Args:
        path: the file; an earlier recording is replaced.
        token: of the run.
        on_error: called if the file cannot be written; the recording ends there.
    """

    def __init__(
        self, path: Path, token: str, on_error: Callable[[OSError], None] = lambda error: None
    ) -> None:
        self._tokens = {token: TOKEN}  # what replaces each secret
        self._on_error = on_error
        self._lock = threading.Lock()
        self._entry: dict[str, Any] | None = None
        self._readings: list[float] = []
        self._file: TextIO | None = path.open("w", encoding="utf-8")

    def clock(self) -> float:
        """Monotonic seconds; the reading is recorded with the current entry."""
        now = time.monotonic()
        self._readings.append(now)
        return now

    def started(self, config: BusConfig, now: float) -> None:
        self._begin(
            bus={
                "run": config.run.hex(),
                "wires": {name: list(ends) for name, ends in config.wires.items()},
                "agents": config.agents,
                "limits": asdict(config.limits),
                "timing": asdict(config.timing),
                "reserved": config.reserved,
                "now": now,
            }
        )

    def received(self, peer: PeerId, frames: Frames, key: str) -> None:
        self._begin(peer=peer.hex(), key=key, frames=self._without_content(frames))

    def commanded(self, command: Command) -> None:
        if command.token:
            kept = f"{TOKEN}-{command.name}-{command.epoch}"[: LIMITS.token_bytes]
            self._tokens[command.token] = kept
            command = command._replace(token=kept)
        self._begin(command=list(command))

    def broke(self, peer: PeerId, reason: str) -> None:
        """A connection broke."""
        self._begin(peer=peer.hex(), broke=reason)

    def ticked(self, now: float) -> None:
        """Time limits were checked."""
        self._begin(tick=now)

    def ended(self, metrics: Mapping[str, int]) -> None:
        self._begin(metrics=dict(metrics))
        self._begin()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None

    def _begin(self, **entry: Any) -> None:
        """Starts an entry and writes the one before, with the clock readings made since."""
        before, self._entry = self._entry, entry
        readings, self._readings = self._readings, []
        if before is None:
            return
        try:
            with self._lock:
                if self._file is not None:
                    self._file.write(json.dumps({**before, "clock": readings}) + "\n")
        except OSError as error:  # the bus does not depend on its recording
            self._file = None
            self._on_error(error)

    def _without_content(self, frames: Frames) -> Sequence[str | int]:
        """Header and rows in base64; the body too, or its size if it is content."""
        try:
            envelope, message = decode(frames)
            kept = blank(message, self._tokens)
            header, rows, body = encode(kept, envelope)
        except (RemoteProtocolError, ValueError):
            # Invalid frames are replaced by other invalid frames, without what they might hold.
            return [_text(bytes(frame[:1]) * 2) for frame in frames][:4]
        content = isinstance(kept, m.Encode | m.Soft | m.Text | m.Result | m.Piece)
        return [_text(header), _text(rows), len(body) if content else _text(body)]


def _text(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode()


def blank(message: m.Message, tokens: Mapping[str, str]) -> m.Message:
    """The message with zeros as its content, and its token replaced."""
    match message:
        case m.Hello():
            return replace(message, token=tokens.get(message.token, "other"))
        case m.Encode() | m.Text() | m.Piece():
            return replace(message, texts=tuple("\0" * len(t.encode()) for t in message.texts))
        case m.Soft():
            payload = message.payload._replace(data=bytes(len(message.payload.data)))
            return replace(message, payload=payload)
        case m.Result():
            texts = tuple("\0" * len(t.encode()) for t in message.texts)
            return replace(message, scores=bytes(len(message.scores)), texts=texts)
    return message
