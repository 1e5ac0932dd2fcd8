"""Agent logs: one JSON object a line, with the trace ids of the rows concerned."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

TRACES: Final = "trace_ids"
"""Use: ``log.warning(..., extra={TRACES: [...]})``, with hex trace ids."""


def utc_time(seconds: float) -> str:
    """A Unix time as text: ``2026-01-31T12:00:00.123Z``."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; ``fields`` are added to every line."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": utc_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            **self._fields,
        }
        traces = getattr(record, TRACES, None)
        if traces:
            line[TRACES] = list(traces)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        line["message"] = record.getMessage()
        return json.dumps(line, ensure_ascii=False, default=str)


def log_json(**fields: Any) -> None:
    """Makes this process log JSON to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(**fields))
    logging.basicConfig(handlers=[handler], level="INFO", force=True)


def message_of(line: str) -> str:
    """The message of a JSON log line; any other line unchanged."""
    try:
        value = json.loads(line)
    except ValueError:
        return line
    return str(value.get("message", line)) if isinstance(value, dict) else line
