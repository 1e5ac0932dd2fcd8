"""The journal of a run: one JSON object a line, in the order in which things happened.

A journal is written while the run goes on and can be replayed afterwards: after a crash it names
every request that was admitted and has no outcome. Each line holds::

    {"seq": 0, "time": "2026-01-31T12:00:00.123Z", "ms": 0.0, "event": "run_started", ...fields}

``ms`` counts from the journal's opening by the monotonic clock; ``time`` is for people. Lines are
flushed one by one, so a killed process loses at most the line it was writing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from agentwire.errors import InputError

ADMITTED = "admitted"
"""Event of rows that were taken in; ``request_ids`` names them."""
FINISHED = "finished"
"""Event of rows with a terminal outcome (answer or error); ``request_ids`` names them."""


class NoJournal:
    """Writes nothing: where messages are timed, a line for each would be timed too."""

    def write(self, event: str, **fields: Any) -> None:
        pass


class Journal:
    """Appends events to a JSONL file. Any thread may write; a lock keeps lines whole.

    Args:
        path: the file; a new run appends to what an interrupted one left.

    Raises:
        OSError: the file cannot be opened.
        InputError: what is there is no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seq = _next_seq(path)
        self._start = time.monotonic()
        self._file: TextIO | None = path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event. Values that JSON does not know are written as text.

        After ``close`` this does nothing: late events of a run that ends must not end it badly.
        """
        with self._lock:
            if self._file is None:
                return
            line = {
                "seq": self._seq,
                "time": _now(),
                "ms": round((time.monotonic() - self._start) * 1000, 3),
                "event": event,
                **fields,
            }
            self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            self._file.flush()
            self._seq += 1

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(
    path: Path, on_torn: Callable[[str], None] = lambda place: None
) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file.

    A process that is killed while it writes leaves a last line without its end: that one is left
    out. Anything else that is no JSON object was never written by agentwire.

    Args:
        on_torn: told the place (``path:line``) of a last line that was left out.

    Raises:
        OSError: no such file.
        InputError: a whole line is not a JSON object; names it.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            elif line.endswith("\n"):
                raise InputError(
                    f"{path}:{number}: not a JSON object.",
                    hint="Take the line out, or restore the file.",
                )
            else:
                on_torn(f"{path}:{number}")


def mend_last_line(path: Path) -> None:
    """Cuts a half-written last line off, so that appending to the file is safe again."""
    if not path.exists():
        return
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        path.write_bytes(raw[: raw.rfind(b"\n") + 1])


def unfinished(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Request ids (hex) that were admitted and have no outcome, in order of admission."""
    open_ids: dict[str, None] = {}
    for event in events:
        ids = event.get("request_ids", ())
        if event.get("event") == ADMITTED:
            open_ids.update(dict.fromkeys(ids))
        elif event.get("event") == FINISHED:
            for request_id in ids:
                open_ids.pop(request_id, None)
    return list(open_ids)


def _now() -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return now.replace("+00:00", "Z")


def _next_seq(path: Path) -> int:
    if not path.exists():
        return 0
    mend_last_line(path)
    last = -1
    for event in read_lines(path):
        last = int(event.get("seq", last))
    return last + 1
