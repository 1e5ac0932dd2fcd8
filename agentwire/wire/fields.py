"""What each field of a message may hold: one table for both directions of the codec.

A ``Check`` takes a value and the limits and gives the value as messages hold it, or raises
``Misfit``. ``encode`` turns a misfit into a LocalProtocolError, ``decode`` into a
RemoteProtocolError, so that nothing can be sent that the other end would refuse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from agentwire.errors import NackCode
from agentwire.wire import messages as m
from agentwire.wire.limits import DEFAULT_LIMITS, Limits

Check: TypeAlias = Callable[[object, Limits], Any]

MAX_U32 = 2**32 - 1
MAX_I63 = 2**63 - 1  # fits the signed 64-bit integer of every language
ID_BYTES = 16
TOKEN_BYTES = 8  # two uint32: tokens read and tokens written
KNOWN_NAMES = 256  # strings of each kind that were checked before and need not be again
HEX_SHA256 = re.compile(r"[0-9a-f]{64}")
PRINTABLE = re.compile(r"[!-~]+")  # names reach logs and screens: no spaces, no control characters


class Misfit(Exception):
    """A value that does not fit its field. Never leaves wire/."""

    def __init__(self, code: NackCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def malformed(message: str) -> Misfit:
    return Misfit(NackCode.MALFORMED, message)


def too_large(message: str) -> Misfit:
    return Misfit(NackCode.TOO_LARGE, message)


# -- checks of one value --------------------------------------------------------------------


def integer(low: int, high: int | str) -> Check:
    """An integer in [low, high]; ``high`` may name a field of Limits. A bool is not an integer."""

    def check(value: object, limits: Limits) -> int:
        if type(value) is not int:
            raise malformed(f"must be an integer, not {type(value).__name__}")
        top: int = getattr(limits, high) if isinstance(high, str) else high
        if value < low:
            raise malformed(f"must be {low} or more")
        if value > top:
            raise too_large(f"must be {top} or less")
        return value

    return check


def number(low: float, high: float = math.inf) -> Check:
    """A finite number in [low, high]. Integers pass: some languages write 1.0 as 1."""

    def check(value: object, limits: Limits) -> float:
        if type(value) is float:
            result = value
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise malformed(f"must be a number, not {type(value).__name__}")
        else:
            result = float(value)
        if not math.isfinite(result) or not low <= result <= high:
            raise malformed(f"must be a finite number in [{low}, {high}]")
        return result

    return check


def boolean(value: object, limits: Limits) -> bool:
    if type(value) is not bool:
        raise malformed(f"must be a boolean, not {type(value).__name__}")
    return value


def text(limit: str, pattern: re.Pattern[str] | None = None, *, empty: bool = True) -> Check:
    """A string of at most ``getattr(limits, limit)`` bytes of UTF-8."""

    def examine(value: str, most: int) -> None:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise malformed("holds a lone surrogate, which UTF-8 cannot carry") from None
        if size > most:
            raise too_large(f"has {size} bytes; the limit is {most}")
        if not value:
            if not empty:
                raise malformed("must not be empty")
        elif pattern is not None and not pattern.fullmatch(value):
            raise malformed(f"must match {pattern.pattern}")

    # What has a pattern is short and the same in message after message: names, hashes, wires.
    passed = examine if pattern is None else lru_cache(KNOWN_NAMES)(examine)

    def check(value: object, limits: Limits) -> str:
        if not isinstance(value, str):
            raise malformed(f"must be a string, not {type(value).__name__}")
        passed(value, getattr(limits, limit))
        return value

    return check


def octets(size: int) -> Check:
    """Exactly ``size`` bytes."""

    def check(value: object, limits: Limits) -> bytes:
        if type(value) is not bytes:
            raise malformed(f"must be bytes, not {type(value).__name__}")
        if len(value) != size:
            raise malformed(f"must have {size} bytes, not {len(value)}")
        return value

    return check


def member(*allowed: StrEnum | str) -> Check:
    """One of these strings."""
    table = {str(item): item for item in allowed}

    def check(value: object, limits: Limits) -> str:
        if not isinstance(value, str) or value not in table:
            raise malformed(f"must be one of {', '.join(table)}")
        return table[value]

    return check


def many(item: Check, low: int, high: str) -> Check:
    """A list of ``low`` to ``getattr(limits, high)`` items, as a tuple."""

    def check(value: object, limits: Limits) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise malformed(f"must be a list, not {type(value).__name__}")
        if len(value) < low:
            raise malformed(f"must have {low} or more items")
        if len(value) > getattr(limits, high):
            raise too_large(f"has {len(value)} items; the limit is {getattr(limits, high)}")
        return tuple(item(entry, limits) for entry in value)

    return check


_known_stages: set[tuple[str, ...]] = set()


def durations(value: object, limits: Limits) -> dict[str, float]:
    """Stages: names to milliseconds."""
    if not isinstance(value, dict | Mapping):
        raise malformed(f"must be a map, not {type(value).__name__}")
    if len(value) > limits.stages:
        raise too_large(f"has {len(value)} stages; the limit is {limits.stages}")
    names = tuple(value)
    if limits is not DEFAULT_LIMITS or names not in _known_stages:
        for name in names:
            STAGE(name, limits)
        if limits is DEFAULT_LIMITS:
            if len(_known_stages) >= KNOWN_NAMES:
                _known_stages.clear()
            _known_stages.add(names)
    result = dict(value)
    for name, spent in result.items():
        if not (type(spent) is float and 0.0 <= spent < math.inf):  # hardly ever
            result[name] = MILLISECONDS(spent, limits)
    return result


def counts(value: object, limits: Limits) -> bytes:
    """Two uint32 a row, or nothing."""
    if type(value) is not bytes:
        raise malformed(f"must be bytes, not {type(value).__name__}")
    if len(value) > limits.rows * TOKEN_BYTES:
        raise too_large(f"has {len(value)} bytes; the limit is {limits.rows * TOKEN_BYTES}")
    return value


def rms_range(value: object, limits: Limits) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise malformed("must be a list of two numbers")
    low, high = (number(0.0)(end, limits) for end in value)
    if low > high:
        raise malformed("must not be reversed")
    return low, high


def record(kind: type[Any], fields: Mapping[str, Check]) -> Check:
    """A value of the dataclass ``kind``; on the wire a map with exactly these keys."""

    def check(value: object, limits: Limits) -> Any:
        if isinstance(value, kind):
            value = plain(value, fields)
        return kind(**checked(value, fields, limits))

    return check


def plain(value: object, fields: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a dataclass as a map."""
    return {name: getattr(value, name) for name in fields}


def checked(value: object, fields: Mapping[str, Check], limits: Limits) -> dict[str, Any]:
    """A map with exactly the keys of ``fields``, every value checked."""
    if not isinstance(value, dict):
        raise malformed(f"must be a map, not {type(value).__name__}")
    if value.keys() != fields.keys():
        missing = sorted(fields.keys() - value.keys())
        unknown = sorted(str(key)[:32] for key in value.keys() - fields.keys())
        raise malformed(f"wrong keys (missing: {missing}, unknown: {unknown[:8]})")
    result = {}
    name = ""
    try:
        for name, check in fields.items():
            result[name] = check(value[name], limits)
    except Misfit as error:
        raise Misfit(error.code, f"{name}: {error}") from None
    return result


# -- the tables -----------------------------------------------------------------------------

STAGE = text("stage_bytes", PRINTABLE, empty=False)
MILLISECONDS = number(0.0)
COUNT = integer(0, MAX_U32)
NAME = text("name_bytes", PRINTABLE, empty=False)
ORIGIN = text("name_bytes", PRINTABLE)
WIRE = text("wire_bytes", PRINTABLE, empty=False)
HASH = text("name_bytes", HEX_SHA256, empty=False)
REASON = text("reason_bytes")
PROMPT_HASH = text("name_bytes", re.compile(r"[0-9a-f]{64}|any|free_text"), empty=False)

COMMON: Mapping[str, Check] = {
    "v": integer(1, MAX_U32),
    "t": integer(1, MAX_U32),
    "r": octets(ID_BYTES),
    "s": integer(0, MAX_I63),
    "e": integer(0, MAX_I63),
    "n": integer(0, "rows"),
    "c": integer(0, MAX_U32),
}
"""Header keys of every message: version, type, run, sequence, epoch, rows, checksum."""

ROW: Mapping[str, Check] = {
    "request_id": octets(ID_BYTES),
    "ms_left": lambda value, limits: None if value is None else COUNT(value, limits),
    "trace_id": octets(ID_BYTES),
    "size": integer(0, "text_row_bytes"),
}

MODEL: Mapping[str, Check] = {
    "name": text("model_name_bytes", empty=False),
    "fingerprint": HASH,
    "width": integer(1, "width"),
    "layers": integer(1, "layers"),
    "embedding_rms": number(0.0),
    "dtype": NAME,
    "device": NAME,
}
BRIDGE: Mapping[str, Check] = {
    "name": text("model_name_bytes", empty=False),
    "fingerprint": HASH,
    "sender": HASH,
    "receiver": HASH,
    "layer": integer(0, "layers"),
    "soft_tokens": integer(1, "soft_tokens"),
    "width": integer(1, "width"),
    "prompts": many(PROMPT_HASH, 1, "prompts"),
    "rms_range": rms_range,
}
RELAY: Mapping[str, Check] = {
    "template": text("prompt_bytes"),
    "max_new_tokens": integer(0, "new_tokens"),
}
DECODING: Mapping[str, Check] = {
    "temperature": integer(0, 10_000),
    "top_p": integer(1, 1000),
    "seed": integer(0, MAX_U32),
    "stop": many(text("label_bytes", empty=False), 0, "stops"),
    "stream": boolean,
}
TASK: Mapping[str, Check] = {
    "name": text("model_name_bytes", empty=False),
    "prompt": text("prompt_bytes"),
    "text_prompt": text("prompt_bytes"),
    "labels": many(text("label_bytes", empty=False), 0, "labels"),
    "relay": record(m.RelaySpec, RELAY),
    "max_new_tokens": integer(0, "new_tokens"),
    "decoding": record(m.Decoding, DECODING),
    "form": member("text", "plain", "chat", "kept"),
}

Body: TypeAlias = Literal["none", "model", "task", "bridge", "texts", "payload", "answers"]
Rows: TypeAlias = Literal["none", "any", "some", "ids"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one message type lies in its three frames.

    Attributes:
        kind: the message class.
        header: header keys besides COMMON; each is a field of the class, except that a payload
            puts its dimensions there.
        rows: none; any number; one or more; or request ids alone, one or more.
        body: what the third frame holds.
    """

    kind: type[Any]
    header: Mapping[str, Check]
    rows: Rows = "none"
    body: Body = "none"


_WORK: Mapping[str, Check] = {"wire": WIRE, "task": HASH, "origin": ORIGIN, "reason": REASON}

LAYOUTS: Mapping[m.MessageType, Layout] = {
    m.MessageType.HELLO: Layout(
        m.Hello,
        {
            "name": NAME,
            "role": member(m.Role.AGENT, m.Role.CLIENT),
            "token": text("token_bytes", PRINTABLE),
            "versions": many(integer(1, 2**16 - 1), 1, "versions"),
        },
        body="model",
    ),
    m.MessageType.WELCOME: Layout(
        m.Welcome,
        {
            "version": integer(1, 2**16 - 1),
            "ping_ms": integer(1, MAX_U32),
            "liveness_ms": integer(1, MAX_U32),
        },
    ),
    m.MessageType.DEFINE: Layout(m.Define, {}, body="task"),
    m.MessageType.OFFER: Layout(m.Offer, {"wire": WIRE}, body="bridge"),
    m.MessageType.ACCEPT: Layout(m.Accept, {"wire": WIRE, "bridge": HASH}),
    m.MessageType.ENCODE: Layout(
        m.Encode,
        {
            **_WORK,
            "channel": member(*m.Channel),
            "fallback": member("text", "error"),
            "solo": boolean,
            "mode": member(*m.Mode),
        },
        rows="some",
        body="texts",
    ),
    m.MessageType.SOFT: Layout(
        m.Soft,
        {
            "wire": WIRE,
            "task": HASH,
            "bridge": HASH,
            "soft_tokens": integer(1, "soft_tokens"),
            "width": integer(1, "width"),
            "dtype": NAME,
            "stages": durations,
            "solo": boolean,
            "origin": ORIGIN,
        },
        rows="some",
        body="payload",
    ),
    m.MessageType.TEXT: Layout(
        m.Text, {**_WORK, "stages": durations, "solo": boolean}, rows="some", body="texts"
    ),
    m.MessageType.RESULT: Layout(
        m.Result,
        {
            **_WORK,
            "channel": member(*m.Channel),
            "labels": integer(0, "labels"),
            "payload_bytes": COUNT,
            "stages": durations,
            "tokens": counts,
        },
        rows="some",
        body="answers",
    ),
    m.MessageType.PIECE: Layout(
        m.Piece,
        {"wire": WIRE, "task": HASH, "origin": ORIGIN, "offsets": many(COUNT, 1, "rows")},
        rows="some",
        body="texts",
    ),
    m.MessageType.NACK: Layout(
        m.Nack,
        {
            "code": member(*NackCode),
            "reason": REASON,
            "wire": text("wire_bytes", PRINTABLE),
            "retry_after_ms": COUNT,
            "origin": ORIGIN,
        },
        rows="any",
    ),
    m.MessageType.CREDIT: Layout(
        m.Credit, {"wire": WIRE, "messages": COUNT, "bytes": integer(0, MAX_I63)}
    ),
    m.MessageType.PING: Layout(m.Ping, {"busy_ms": COUNT}),
    m.MessageType.PONG: Layout(m.Pong, {"busy_ms": COUNT}),
    m.MessageType.CANCEL: Layout(m.Cancel, {"wire": WIRE, "origin": ORIGIN}, rows="ids"),
    m.MessageType.PROGRESS: Layout(
        m.Progress,
        {"stage": text("reason_bytes", empty=False), "fraction": number(0.0, 1.0)},
    ),
    m.MessageType.GOODBYE: Layout(m.Goodbye, {"reason": REASON}),
}

HEADERS: Mapping[m.MessageType, Mapping[str, Check]] = {
    number_: {**COMMON, **layout.header} for number_, layout in LAYOUTS.items()
}
"""All header keys of each type."""

TYPE_OF: Mapping[type[Any], m.MessageType] = {
    layout.kind: number_ for number_, layout in LAYOUTS.items()
}
