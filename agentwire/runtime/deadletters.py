"""Dead letters: requests that were in flight at two deaths of an agent, kept so they can be resent.

``deadletters.jsonl`` in a run's folder holds one JSON object a line: ``dead`` with everything that
a retry needs, and ``retried`` with the outcome of a retry. The file contains texts, so only its
owner may read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from agentwire.config import read_regular
from agentwire.errors import InputError, RequestError
from agentwire.runtime.ledger import Request
from agentwire.runtime.pending import Outcome
from agentwire.wire.messages import Channel, Mode, TaskSpec

FILE_NAME: Final = "deadletters.jsonl"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead-lettered request.

    Attributes:
        request_id: 32 hex digits; a retry uses it, so an existing answer is not computed again.
        agent, reason: the agent that died, and the cause of its last death.
        time: of the last death, in UTC.
        outcome: of the latest retry: ``answered`` or an error code; "" before the first.
        question: as in ``messages.Row``.
    """

    request_id: str
    wire: str
    task: TaskSpec
    text: str
    channel: Channel
    fallback: Literal["text", "error"]
    mode: Mode
    agent: str
    reason: str
    time: str
    outcome: str = ""
    question: str = ""

    @property
    def open(self) -> bool:
        """Whether it still has no answer."""
        return self.outcome != "answered"


_LETTER = TypeAdapter(DeadLetter)


class DeadLetters:
    """The dead letters in the folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def add(self, request: Request, task: TaskSpec, agent: str, reason: str) -> None:
        letter = DeadLetter(
            request.request_id.hex(),
            request.wire,
            task,
            request.text,
            request.channel,
            request.fallback,
            request.mode,
            agent,
            reason,
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            question=request.question,
        )
        self._append({"event": "dead", **_LETTER.dump_python(letter, mode="json")})

    def retried(self, request_id: str, outcome: Outcome) -> None:
        """Records the outcome of a retry."""
        entry: dict[str, Any] = {"event": "retried", "request_id": request_id}
        if isinstance(outcome, RequestError):
            entry |= {"outcome": outcome.code.value, "reason": outcome.message}
        else:
            entry |= {"outcome": "answered", "label": outcome.label, "answer": outcome.text}
        self._append(entry)

    def all(self) -> list[DeadLetter]:
        """Every dead letter, oldest first; raises an InputError if there is no such run, or if its
        file is corrupt.
        """
        if not self.path.parent.is_dir():
            raise InputError(
                f"{self.path.parent} is not the folder of a run.",
                hint="Give a run's folder, such as runs/<run>.",
            )
        letters: dict[str, DeadLetter] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                values = json.loads(line)
                event = values.pop("event")
                if event == "dead":
                    letters[values["request_id"]] = _LETTER.validate_python(values)
                elif event == "retried" and values["request_id"] in letters:
                    letter = letters[values["request_id"]]
                    letters[letter.request_id] = replace(letter, outcome=str(values["outcome"]))
            except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
                raise InputError(
                    f"{self.path}:{number} is not a dead letter.",
                    hint="Remove the line from the file.",
                ) from None
        return list(letters.values())

    def _lines(self) -> Iterator[str]:
        if self.path.exists():
            # Not ``splitlines``: a text may contain other line separators, such as U+2028.
            # The last part is empty, or a line that a crash has cut.
            yield from read_regular(self.path).decode(errors="replace").split("\n")[:-1]

    def _append(self, values: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        line = json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace")
        with os.fdopen(os.open(self.path, flags, 0o600), "wb") as file:
            file.write(line + b"\n")


def pick(letters: Collection[DeadLetter], ids: Collection[str]) -> list[DeadLetter]:
    """The letters without an answer; with ``ids``, only those whose ids start with one of them.
    Raises an InputError for an id that matches no letter.
    """
    for prefix in ids:
        if not any(letter.request_id.startswith(prefix) for letter in letters):
            raise InputError(
                f"There is no dead letter {prefix}.",
                hint="`agentwire deadletters list` lists them.",
            )
    return [
        letter
        for letter in letters
        if letter.open and (not ids or any(letter.request_id.startswith(i) for i in ids))
    ]
