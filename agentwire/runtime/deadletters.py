"""Requests that were in flight at two deaths of an agent, kept so that they can be asked again.

``deadletters.jsonl`` in a run's folder holds one JSON object a line: ``dead`` with everything that
asking again takes (among it the text, so the file is readable by its user alone), and ``retried``
with what became of it. A request that was answered is not asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from agentwire.errors import InputError, RequestError, ScenarioError
from agentwire.runtime.ledger import Request
from agentwire.runtime.pending import Outcome
from agentwire.wire.messages import Channel, Mode, TaskSpec

FILE_NAME: Final = "deadletters.jsonl"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One request that ended so.

    Attributes:
        request_id: 32 hex digits; asked again with it, an answer is found if there is one.
        agent, reason: whose deaths, and of what the last one was.
        time: when, in UTC.
        outcome: of the latest retry: ``answered`` or the code of an error; "": there was none.
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

    @property
    def open(self) -> bool:
        """Whether it has no answer."""
        return self.outcome != "answered"


_LETTER = TypeAdapter(DeadLetter)


class DeadLetters:
    """The file of one run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def add(self, request: Request, task: TaskSpec, agent: str, reason: str) -> None:
        """Keeps a request."""
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
        )
        self._append({"event": "dead", **_LETTER.dump_python(letter, mode="json")})

    def retried(self, request_id: str, outcome: Outcome) -> None:
        """Notes what became of a retry."""
        said: dict[str, Any] = {"event": "retried", "request_id": request_id}
        if isinstance(outcome, RequestError):
            said |= {"outcome": outcome.code.value, "reason": outcome.message}
        else:
            said |= {"outcome": "answered", "label": outcome.label, "answer": outcome.text}
        self._append(said)

    def all(self) -> list[DeadLetter]:
        """Every letter, oldest first, with the outcome of its latest retry.

        Raises:
            InputError: there is no such run, or the file is not one of these.
        """
        if not self.path.parent.is_dir():
            raise InputError(
                f"{self.path.parent} is no folder of a run.", hint="Name one, such as runs/<run>."
            )
        letters: dict[str, DeadLetter] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                values = json.loads(line)
                event = values.pop("event")
                if event == "dead":
                    letters[values["request_id"]] = _LETTER.validate_python(values)
                elif event == "retried" and values["request_id"] in letters:
                    known = _LETTER.dump_python(letters[values["request_id"]])
                    known["outcome"] = str(values["outcome"])
                    letters[values["request_id"]] = _LETTER.validate_python(known)
            except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
                raise InputError(
                    f"{self.path}:{number} is not a dead letter.",
                    hint="Take the line out of the file.",
                ) from None
        return list(letters.values())

    def _lines(self) -> Iterator[str]:
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # a crash may have cut the last line
            yield from whole.splitlines()

    def _append(self, values: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(os.open(self.path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def pick(letters: Collection[DeadLetter], ids: Collection[str]) -> list[DeadLetter]:
    """Those that have no answer; of them those whose ids begin so, where some are named.

    Raises:
        InputError: a named one is not there.
    """
    for wanted in ids:
        if not any(letter.request_id.startswith(wanted) for letter in letters):
            raise InputError(
                f"There is no dead letter {wanted}.", hint="`agentwire deadletters list` shows all."
            )
    return [
        letter
        for letter in letters
        if letter.open and (not ids or any(letter.request_id.startswith(i) for i in ids))
    ]


async def ask_again(
    ask: Callable[..., Awaitable[list[Outcome]]],
    wires: Collection[str],
    letter: DeadLetter,
    deadline: float | None,
) -> Outcome:
    """Asks a dead letter again, by its id.

    Args:
        ask: as ``Runtime`` asks.
        wires: of the scenario, direct ones included.
        deadline: seconds; None: the scenario's.

    Raises:
        ScenarioError: there is no such wire.
    """
    if letter.wire not in wires:
        raise ScenarioError(
            f"There is no wire {letter.wire} in this scenario.", hint=f"Wires: {', '.join(wires)}."
        )
    try:
        (outcome,) = await ask(
            letter.wire,
            [letter.text],
            letter.channel,
            letter.fallback,
            letter.task,
            {} if deadline is None else {"deadline": deadline},
            request_ids=[letter.request_id],
            mode=letter.mode,
        )
    except RequestError as error:
        return error
    return outcome
