"""A recording fed through the wire and routing state machines again: the same broker, no socket.

What the broker decides depends on what comes in and on the clock, and both are in the recording.
So a replay that ends with other figures has found a broker that changed, or a bug.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentwire.bus.broker import Broker
from agentwire.bus.connections import Connection
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.recording import TOKEN, body_of
from agentwire.bus.stimuli import Departed, Expect, Forget, Invite, PeerId, Stimulus
from agentwire.bus.transport import Frame
from agentwire.errors import InputError
from agentwire.telemetry.journal import read_lines
from agentwire.wire.codec import decode
from agentwire.wire.messages import Nack, Result
from agentwire.wire.states import Timing


@dataclass
class Replayed:
    """What came of a replay.

    Attributes:
        entries: lines of the recording.
        answered: request ids (hex) for which the broker handed on a Result.
        refused: request ids -> codes of the Nacks that the broker handed on.
        metrics: the broker's figures at the end.
        recorded: the figures that the recording ends with; None: it was cut short.
        torn: places (``path:line``) of last lines that a killed run did not write to their end;
            they were left out.
    """

    entries: int = 0
    answered: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    metrics: Mapping[str, int] = field(default_factory=dict)
    recorded: Mapping[str, int] | None = None
    torn: list[str] = field(default_factory=list)


class _Broker(Broker):
    """A broker that writes into the books, and reads the clock from the recording."""

    def __init__(self, bus: Mapping[str, Any], done: Replayed) -> None:
        super().__init__(
            run=bytes.fromhex(bus["run"]),
            folder=Path(),
            wires={name: (ends[0], ends[1]) for name, ends in bus["wires"].items()},
            token=TOKEN,
            on_event=lambda event: None,
            agents=bus["agents"],
            limits=RoutingLimits(**bus["limits"]),
            timing=Timing(**bus["timing"]),
        )
        self._done = done
        self._key = ""
        self._readings: Iterator[float] = iter(())
        self._clock = lambda: next(self._readings)
        self._ticked = self._swept = bus["now"]

    def feed(self, entry: Mapping[str, Any]) -> None:
        """One line of the recording."""
        self._readings = iter(entry["clock"])
        if "frames" in entry:
            self._key = str(entry["key"])
            self._take(bytes.fromhex(entry["peer"]), [_frame(f) for f in entry["frames"]])
        elif "command" in entry:
            self._route(_command(entry["command"]))
        elif "broke" in entry:
            self._route(Departed(bytes.fromhex(entry["peer"]), entry["broke"]))
        elif "tick" in entry:
            self._tick(entry["tick"])
        else:
            raise ValueError("an entry of no known kind")

    def _key_of_last(self) -> str:
        return self._key

    def _write(self, peer: PeerId, connection: Connection, frames: list[Frame]) -> None:
        _, message = decode(frames)
        match message:
            case Result(rows=rows):
                self._done.answered.update(row.request_id.hex() for row in rows)
            case Nack(code=code, rows=rows):
                for row in rows:
                    self._done.refused.setdefault(row.request_id.hex(), set()).add(code.value)
            case _:
                pass


def replay(path: Path) -> Replayed:
    """Feeds a recording.

    Raises:
        InputError: there is none, or it is not one; names the line.
    """
    done, number = Replayed(), 0
    broker: _Broker | None = None
    try:
        for entry in read_lines(path, done.torn.append):
            number += 1
            if broker is None:
                broker = _Broker(entry["bus"], done)
                continue
            done.entries += 1
            if "metrics" in entry:
                done.recorded = entry["metrics"]
            else:
                broker.feed(entry)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}.",
            hint="Name the folder of a run that was recorded (`agentwire run --record`).",
        ) from None
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise InputError(
            f"{path}:{number}: not the recording of a bus ({type(error).__name__}).",
            hint="It may be of another version of agentwire.",
        ) from None
    if broker is None:
        raise InputError(
            f"{path} holds no entry: the run was stopped before any was on the disk.",
            hint="Record a longer run (`agentwire run --record`).",
        )
    done.metrics = broker.metrics()
    return done


def _frame(kept: str | int) -> bytes:
    return body_of(kept) if isinstance(kept, int) else base64.b64decode(kept)


def _command(words: list[Any]) -> Stimulus:
    match words:
        case ["expect", str(name), int(epoch)]:
            return Expect(name, epoch)
        case ["forget", str(name), int(epoch)]:
            return Forget(name, epoch)
        case ["invite", str(name)]:
            return Invite(name)
    raise ValueError("no command")


def differences(done: Replayed, journal: Path) -> list[str]:
    """How a replay differs from what the run's own records say; empty: not at all.

    Raises:
        InputError: the journal cannot be read, or is none.
    """
    found: list[str] = []
    if done.recorded is not None:
        keys = sorted(done.recorded.keys() | done.metrics.keys())
        for key in keys:
            was, now = done.recorded.get(key, 0), done.metrics.get(key, 0)
            if was != now:
                found.append(f"{key}: {was} in the run, {now} in the replay")
    try:
        outcomes = _outcomes(journal, done.torn.append)
    except OSError as error:
        raise InputError(
            f"{journal} cannot be read: {error.strerror}.", hint="Name a run's folder."
        ) from None
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{journal} is no journal ({type(error).__name__}).", hint="Name a run's folder."
        ) from None
    for request_id, outcome in outcomes.items():
        if outcome == "answered" and request_id not in done.answered:
            found.append(f"request {request_id}: answered in the run, not in the replay")
    for request_id in done.answered - outcomes.keys():
        found.append(f"request {request_id}: answered in the replay, unknown to the journal")
    return found


def _outcomes(journal: Path, on_torn: Callable[[str], None]) -> dict[str, str]:
    """Outcome of every request of the journal; "": it has none."""
    outcomes: dict[str, str] = {}
    for line in read_lines(journal, on_torn):
        if line.get("event") in ("admitted", "finished"):
            for request_id in line["request_ids"]:
                outcomes[request_id] = line.get("outcome", outcomes.get(request_id, ""))
    return outcomes


def to_json(done: Replayed) -> str:
    """For programs."""
    refused = Counter(code for codes in done.refused.values() for code in codes)
    return json.dumps(
        {
            "entries": done.entries,
            "answered": len(done.answered),
            "refused": dict(refused),
            "metrics": dict(done.metrics),
            "torn": done.torn,
        }
    )
