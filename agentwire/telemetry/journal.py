"""The journal of a run: one JSON object a line, in order.

The journal is written during the run. After a crash it names every request that was admitted and
has no outcome. Each line holds::

    {"seq": 0, "time": "2026-01-31T12:00:00.123Z", "ms": 0.0, "event": "run_started", ...fields}

``ms`` is the monotonic time since the journal was opened; ``time`` is for people. Each line is
written at once, so a killed process loses at most the line it was writing. A line that cannot be
written (the disk is full) is lost; ``{"event": "lines_lost", "lines": n}`` takes its place later.
"""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from agentwire.config import open_regular, read_regular
from agentwire.errors import InputError
from agentwire.telemetry.logs import utc_time

# Events of rows that were admitted, and that ended with an answer or an error; both have
# ``request_ids``.
ADMITTED, FINISHED = "admitted", "finished"


class NoJournal:
    """Writes nothing, for benchmarks: a line for each message would be timed too."""

    def write(self, event: str, **fields: Any) -> None:
        pass


class Journal:
    """Appends events to a JSONL file. Thread-safe.

    Args:
        path: the file; a resumed run appends to it. Raises an OSError if it cannot be opened, and
            an InputError if it is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seq = _next_seq(path)
        self._start = time.monotonic()
        self._lost = 0  # lines since the last one that could be written
        self._file: io.FileIO | None = path.open("ab", buffering=0)

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event. Values that JSON does not know are written as strings. Raises an
        OSError if the line cannot be written; none of it is in the file then.

        Does nothing after ``close``: late events must not make the end of a run fail.
        """
        with self._lock:
            if self._file is None:
                return
            try:
                if self._lost:
                    self._append(self._file, "lines_lost", {"lines": self._lost})
                    self._lost = 0
                self._append(self._file, event, fields)
            except OSError:
                self._lost += 1
                raise

    def _append(self, file: io.FileIO, event: str, fields: Mapping[str, Any]) -> None:
        line = {
            "seq": self._seq,
            "time": utc_time(time.time()),
            "ms": round((time.monotonic() - self._start) * 1000, 3),
            "event": event,
            **fields,
        }
        text = json.dumps(line, ensure_ascii=False, default=str) + "\n"
        data = text.encode(errors="backslashreplace")  # a lone surrogate becomes a JSON escape
        written = file.write(data) or 0
        if written < len(data):
            file.truncate(os.fstat(file.fileno()).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._seq += 1

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def read_lines(
    path: Path, on_torn: Callable[[str], None] = lambda place: None
) -> Iterator[dict[str, Any]]:
    """As ``numbered_lines``, without the numbers."""
    return (value for _, value in numbered_lines(path, on_torn))


def numbered_lines(
    path: Path, on_torn: Callable[[str], None] = lambda place: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file and their line numbers. The torn last line that a killed process
    leaves is skipped; ``on_torn`` is called with its place (``path:line``).

    Raises:
        OSError: the file cannot be read.
        InputError: a whole line is not a JSON object: agentwire never wrote it.
    """
    with TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield number, value
            elif line.endswith("\n"):
                raise InputError(
                    f"{path}:{number}: not a JSON object.",
                    hint="Remove the line, or restore the file.",
                )
            else:
                on_torn(f"{path}:{number}")


def drop_torn_line(path: Path) -> None:
    """Removes a half-written last line, so that the file can be appended to."""
    if not path.exists():
        return
    raw = read_regular(path)
    if raw and not raw.endswith(b"\n"):
        path.write_bytes(raw[: raw.rfind(b"\n") + 1])


def unfinished(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids (hex) of admitted requests without an outcome, in order of admission."""
    open_ids: dict[str, None] = {}
    for event in events:
        ids = event.get("request_ids", ())
        if event.get("event") == ADMITTED:
            open_ids.update(dict.fromkeys(ids))
        elif event.get("event") == FINISHED:
            for request_id in ids:
                open_ids.pop(request_id, None)
    return list(open_ids)


def _next_seq(path: Path) -> int:
    if not path.exists():
        return 0
    drop_torn_line(path)
    last = -1
    for number, event in numbered_lines(path):
        last = event.get("seq", last)
        if not isinstance(last, int):
            raise InputError(
                f"{path}:{number}: `seq` is not a number.", hint="Remove the line from the file."
            )
    return last + 1
