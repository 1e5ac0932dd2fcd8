"""Replays a recording: feeds a broker's input to its core again, without sockets.

The broker's decisions depend only on its input and its clock, and a recording holds both. A replay
that ends with other figures therefore shows that the broker changed, or a bug.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentwire.bus.core import BrokerCore, BusConfig
from agentwire.bus.flow import RoutingLimits
from agentwire.bus.instructions import Command
from agentwire.bus.recording import TOKEN
from agentwire.bus.transport import Frames, PeerId, Sent
from agentwire.errors import InputError
from agentwire.telemetry.journal import read_lines
from agentwire.wire.codec import decode
from agentwire.wire.messages import Nack, Result
from agentwire.wire.session import Timing


@dataclass
class Replayed:
    """The outcome of a replay.

    Attributes:
        answered: request ids (hex) for which the broker forwarded a Result.
        refused: request ids -> codes of the Nacks that the broker forwarded.
        metrics: the broker's figures at the end.
        recorded: the figures at the end of the recording; None if it was cut short.
        torn: places (``path:line``) of incomplete last lines of a killed run, which were skipped.
    """

    entries: int = 0
    answered: set[str] = field(default_factory=set)
    refused: dict[str, set[str]] = field(default_factory=dict)
    metrics: Mapping[str, int] = field(default_factory=dict)
    recorded: Mapping[str, int] | None = None
    torn: list[str] = field(default_factory=list)


class _Replay:
    """A broker core whose input and clock come from a recording and whose output is noted."""

    def __init__(self, bus: Mapping[str, Any], done: Replayed) -> None:
        self._done = done
        self._readings: Iterator[float] = iter(())
        self.core = BrokerCore(
            BusConfig(
                bytes.fromhex(bus["run"]),
                {name: (ends[0], ends[1]) for name, ends in bus["wires"].items()},
                TOKEN,
                bus["agents"],
                RoutingLimits(**bus["limits"]),
                Timing(**bus["timing"]),
                bus["reserved"],
            ),
            on_event=lambda event: None,
            clock=lambda: next(self._readings),
            now=bus["now"],
        )
        self.core.write = self._note

    def feed(self, entry: Mapping[str, Any]) -> None:
        """Feeds one line of the recording."""
        self._readings = iter(entry["clock"])
        if "frames" in entry:
            frames = [_frame(frame) for frame in entry["frames"]]
            self.core.receive(bytes.fromhex(entry["peer"]), frames, str(entry["key"]))
        elif "command" in entry:
            action, name, epoch, token = entry["command"]
            self.core.command(Command(action, str(name), int(epoch), str(token)))
        elif "broke" in entry:
            self.core.disconnect(bytes.fromhex(entry["peer"]), entry["broke"])
        elif "tick" in entry:
            self.core.tick(entry["tick"])
        else:
            raise ValueError("unknown kind of entry")

    def _note(self, peer: PeerId, frames: Frames) -> Sent:
        _, message = decode(frames)
        match message:
            case Result(rows=rows):
                self._done.answered.update(row.request_id.hex() for row in rows)
            case Nack(code=code, rows=rows):
                for row in rows:
                    self._done.refused.setdefault(row.request_id.hex(), set()).add(code.value)
            case _:
                pass
        return Sent.TAKEN


def replay(path: Path) -> Replayed:
    """Replays a recording. Raises an InputError, with the line, if it is missing or damaged."""
    done, number = Replayed(), 0
    run: _Replay | None = None
    try:
        for entry in read_lines(path, done.torn.append):
            number += 1
            if run is None:
                run = _Replay(entry["bus"], done)
                continue
            done.entries += 1
            if "metrics" in entry:
                done.recorded = entry["metrics"]
            else:
                run.feed(entry)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}.",
            hint="Name the folder of a run that was recorded (`agentwire run --record`).",
        ) from None
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise InputError(
            f"{path}:{number}: not a recording of a bus ({type(error).__name__}).",
            hint="Another version of agentwire may have written it.",
        ) from None
    if run is None:
        raise InputError(
            f"{path} is empty: the run stopped before the first entry was written.",
            hint="Record a longer run (`agentwire run --record`).",
        )
    done.metrics = run.core.metrics()
    return done


def _frame(kept: str | int) -> bytes:
    # Content was recorded as its size.
    return bytes(kept) if isinstance(kept, int) else base64.b64decode(kept)


def differences(done: Replayed, journal: Path) -> list[str]:
    """Differences between a replay and the run's own records; empty if there are none. Raises an
    InputError if the journal cannot be read."""
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
            f"{journal} is not a journal ({type(error).__name__}).", hint="Name a run's folder."
        ) from None
    for request_id, outcome in outcomes.items():
        if outcome == "answered" and request_id not in done.answered:
            found.append(f"request {request_id}: answered in the run, not in the replay")
    for request_id in done.answered - outcomes.keys():
        found.append(f"request {request_id}: answered in the replay, unknown to the journal")
    return found


def _outcomes(journal: Path, on_torn: Callable[[str], None]) -> dict[str, str]:
    """Outcome of every request in the journal; "" if it has none."""
    outcomes: dict[str, str] = {}
    for line in read_lines(journal, on_torn):
        if line.get("event") in ("admitted", "finished"):
            for request_id in line["request_ids"]:
                outcomes[request_id] = line.get("outcome", outcomes.get(request_id, ""))
    return outcomes


def to_json(done: Replayed) -> str:
    """The outcome as JSON."""
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
