"""What each header field, row and record may hold, and the header of each message type.

A ``Check`` takes a value and returns it as messages hold it, or raises
``Misfit``. ``encode`` and ``decode`` use the same tables, so nothing can be sent that the other
end would refuse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter, itemgetter
from typing import Any, Final, Literal, TypeAlias

from agentwire.errors import NackCode
from agentwire.wire import messages as m
from agentwire.wire.limits import LIMITS, SCORE_BYTES

Check: TypeAlias = Callable[[object], Any]
NONE: Final[Mapping[str, Check]] = {}

MAX_U32 = 2**32 - 1
MAX_I63 = 2**63 - 1  # fits the signed 64-bit integer of every language
ID_BYTES = 16
TOKEN_BYTES = 8  # two uint32: tokens read and tokens written
JUDGED_BYTES = 12  # and the fp32 confidence of the answer
CACHE_SIZE: Final = 256
"""Checked headers of each type that are cached. One entry is smaller than a header (4 KiB)."""
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


def integer(low: int, high: int) -> Check:
    """An integer in [low, high]. A bool is not an integer."""

    def check(value: object) -> int:
        if type(value) is not int:
            raise malformed(f"must be an integer, not {type(value).__name__}")
        if value < low:
            raise malformed(f"must be {low} or more")
        if value > high:
            raise too_large(f"must be {high} or less")
        return value

    return check


def number(low: float, high: float = math.inf) -> Check:
    """A finite number in [low, high]. Integers pass: some languages write 1.0 as 1."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise malformed(f"must be a number, not {type(value).__name__}")
        result = float(value)
        if not math.isfinite(result) or not low <= result <= high:
            raise malformed(f"must be a finite number in [{low}, {high}]")
        return result

    return check


def boolean(value: object) -> bool:
    if type(value) is not bool:
        raise malformed(f"must be a boolean, not {type(value).__name__}")
    return value


def text(limit: int, pattern: re.Pattern[str] | None = None, *, empty: bool = True) -> Check:
    """A string of at most ``limit`` bytes of UTF-8."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise malformed(f"must be a string, not {type(value).__name__}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise malformed("holds a lone surrogate, which UTF-8 cannot carry") from None
        if size > limit:
            raise too_large(f"has {size} bytes; the limit is {limit}")
        if not value:
            if not empty:
                raise malformed("must not be empty")
        elif pattern is not None and not pattern.fullmatch(value):
            raise malformed(f"must match {pattern.pattern}")
        return value

    return check


def octets(size: int) -> Check:
    """Exactly ``size`` bytes."""

    def check(value: object) -> bytes:
        if type(value) is not bytes:
            raise malformed(f"must be bytes, not {type(value).__name__}")
        if len(value) != size:
            raise malformed(f"must have {size} bytes, not {len(value)}")
        return value

    return check


def member(*allowed: StrEnum | str) -> Check:
    """One of these strings."""
    table = {str(item): item for item in allowed}

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in table:
            raise malformed(f"must be one of {', '.join(table)}")
        return table[value]

    return check


def many(item: Check, low: int, high: int) -> Check:
    """A list of ``low`` to ``high`` items, as a tuple."""

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise malformed(f"must be a list, not {type(value).__name__}")
        if len(value) < low:
            raise malformed(f"must have {low} or more items")
        if len(value) > high:
            raise too_large(f"has {len(value)} items; the limit is {high}")
        return tuple(item(entry) for entry in value)

    return check


_known_stages: set[tuple[str, ...]] = set()


def durations(value: object) -> dict[str, float]:
    """Stages: names to milliseconds."""
    if not isinstance(value, dict | Mapping):
        raise malformed(f"must be a map, not {type(value).__name__}")
    if len(value) > LIMITS.stages:
        raise too_large(f"has {len(value)} stages; the limit is {LIMITS.stages}")
    names = tuple(value)
    if names not in _known_stages:
        for name in names:
            STAGE(name)
        if len(_known_stages) < CACHE_SIZE:
            _known_stages.add(names)
    result = dict(value)
    for name, spent in result.items():
        if not (type(spent) is float and 0.0 <= spent < math.inf):  # rare
            result[name] = MILLISECONDS(spent)
    return result


def counts(value: object) -> bytes:
    """Two uint32 a row, perhaps an fp32, or nothing."""
    if type(value) is not bytes:
        raise malformed(f"must be bytes, not {type(value).__name__}")
    if len(value) > LIMITS.rows * JUDGED_BYTES:
        raise too_large(f"has {len(value)} bytes; the limit is {LIMITS.rows * JUDGED_BYTES}")
    return value


def rms_range(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise malformed("must be a list of two numbers")
    low, high = (number(0.0)(end) for end in value)
    if low > high:
        raise malformed("must not be reversed")
    return low, high


def record(
    kind: type[Any], fields: Mapping[str, Check], optional: Mapping[str, Check] = NONE
) -> Check:
    """A value of the dataclass ``kind``; on the wire a map with these keys."""

    def check(value: object) -> Any:
        if isinstance(value, kind):
            value = plain(value, fields, optional)
        return kind(**checked(value, fields, optional))

    return check


def plain(
    value: Any, fields: Mapping[str, Check], optional: Mapping[str, Check] = NONE
) -> dict[str, Any]:
    """The fields of a dataclass as a map; of the optional ones, those that are not empty."""
    given = [name for name in optional if getattr(value, name)]
    return {name: getattr(value, name) for name in (*fields, *given)}


def checked(
    value: object, fields: Mapping[str, Check], optional: Mapping[str, Check] = NONE
) -> dict[str, Any]:
    """A map with exactly the keys of ``fields``, and perhaps ``optional`` ones, values checked."""
    if not isinstance(value, dict):
        raise malformed(f"must be a map, not {type(value).__name__}")
    if optional:
        fields = {**fields, **{name: optional[name] for name in optional if name in value}}
    if value.keys() != fields.keys():
        missing = sorted(fields.keys() - value.keys())
        unknown = sorted(str(key)[:32] for key in value.keys() - fields.keys())
        raise malformed(f"wrong keys (missing: {missing}, unknown: {unknown[:8]})")
    result = {}
    name = ""
    try:
        for name, check in fields.items():
            result[name] = check(value[name])
    except Misfit as error:
        raise Misfit(error.code, f"{name}: {error}") from None
    return result


def clip(text: str, size: int) -> str:
    """Cuts a text to at most ``size`` bytes of UTF-8; surrogates become ``?``."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return data.decode()
    return data[: max(0, size - len("…".encode()))].decode(errors="ignore") + "…"


# -- the tables -----------------------------------------------------------------------------

STAGE = text(LIMITS.stage_bytes, PRINTABLE, empty=False)
MILLISECONDS = number(0.0)
COUNT = integer(0, MAX_U32)
NAME = text(LIMITS.name_bytes, PRINTABLE, empty=False)
ORIGIN = text(LIMITS.name_bytes, PRINTABLE)
WIRE = text(LIMITS.wire_bytes, PRINTABLE, empty=False)
HASH = text(LIMITS.name_bytes, HEX_SHA256, empty=False)
REASON = text(LIMITS.reason_bytes)
ROW_TEXT = text(LIMITS.text_row_bytes)
PROMPT_HASH = text(LIMITS.name_bytes, re.compile(r"[0-9a-f]{64}|any|free_text"), empty=False)

COMMON: Mapping[str, Check] = {
    "v": integer(1, MAX_U32),
    "t": integer(1, MAX_U32),
    "r": octets(ID_BYTES),
    "s": integer(0, MAX_I63),
    "e": integer(0, MAX_I63),
    "n": integer(0, LIMITS.rows),
    "c": integer(0, MAX_U32),
}
"""Header keys of every message: version, type, run, sequence, epoch, rows, checksum."""

ROW: Mapping[str, Check] = {
    "request_id": octets(ID_BYTES),
    "ms_left": lambda value: None if value is None else COUNT(value),
    "trace_id": octets(ID_BYTES),
    "size": integer(0, LIMITS.text_row_bytes),
    "question": text(LIMITS.question_bytes, empty=False),
}
PLAIN_ROW: Final = len(ROW) - 1
"""Entries of a row without a question."""
ASKING: Final = frozenset({m.Encode, m.Soft, m.Text})
"""Messages whose rows may have a question."""

MODEL: Mapping[str, Check] = {
    "name": text(LIMITS.model_name_bytes, empty=False),
    "fingerprint": HASH,
    "width": integer(1, LIMITS.width),
    "layers": integer(1, LIMITS.layers),
    "embedding_rms": number(0.0),
    "dtype": NAME,
    "device": NAME,
}
BRIDGE: Mapping[str, Check] = {
    "name": text(LIMITS.model_name_bytes, empty=False),
    "fingerprint": HASH,
    "sender": HASH,
    "receiver": HASH,
    "layer": integer(0, LIMITS.layers),
    "soft_tokens": integer(1, LIMITS.soft_tokens),
    "width": integer(1, LIMITS.width),
    "prompts": many(PROMPT_HASH, 1, LIMITS.prompts),
    "rms_range": rms_range,
}
BRIDGE_OPTIONAL: Mapping[str, Check] = {
    "sizes": many(integer(1, LIMITS.soft_tokens), 1, LIMITS.sizes),
    "receiver_half": boolean,
}
"""Left out if empty or false."""
RELAY: Mapping[str, Check] = {
    "template": text(LIMITS.prompt_bytes),
    "max_new_tokens": integer(0, LIMITS.new_tokens),
}
DECODING: Mapping[str, Check] = {
    "temperature": integer(0, 10_000),
    "top_p": integer(1, 1000),
    "seed": integer(0, MAX_U32),
    "stop": many(text(LIMITS.label_bytes, empty=False), 0, LIMITS.stops),
    "stream": boolean,
}
TASK: Mapping[str, Check] = {
    "name": text(LIMITS.model_name_bytes, empty=False),
    "prompt": text(LIMITS.prompt_bytes),
    "text_prompt": text(LIMITS.prompt_bytes),
    "labels": many(text(LIMITS.label_bytes, empty=False), 0, LIMITS.labels),
    "relay": record(m.RelaySpec, RELAY),
    "max_new_tokens": integer(0, LIMITS.new_tokens),
    "decoding": record(m.Decoding, DECODING),
    "form": member("text", "plain", "chat", "kept"),
}

Body: TypeAlias = Literal["none", "model", "task", "bridge", "texts", "payload", "answers"]
Rows: TypeAlias = Literal["none", "any", "some", "ids"]

_VERSION = integer(1, 2**16 - 1)
_KEYS: Mapping[str, Check] = {
    "wire": WIRE,
    "task": HASH,
    "bridge": HASH,
    "origin": ORIGIN,
    "reason": REASON,
    "channel": member(*m.Channel),
    "fallback": member("text", "error"),
    "mode": member(*m.Mode),
    "solo": boolean,
    "soft_tokens": integer(1, LIMITS.soft_tokens),
    "width": integer(1, LIMITS.width),
    "dtype": NAME,
    "stages": durations,
    "labels": integer(0, LIMITS.labels),
    "payload_bytes": COUNT,
    "tokens": counts,
    "offsets": many(COUNT, 1, LIMITS.rows),
    "code": member(*NackCode),
    "retry_after_ms": COUNT,
    "messages": COUNT,
    "bytes": integer(0, MAX_I63),
    "busy_ms": COUNT,
    "stage": text(LIMITS.reason_bytes, empty=False),
    "fraction": number(0.0, 1.0),
    "name": NAME,
    "role": member(m.Role.AGENT, m.Role.CLIENT),
    "token": text(LIMITS.token_bytes, PRINTABLE),
    "versions": many(_VERSION, 1, LIMITS.versions),
    "version": _VERSION,
    "ping_ms": integer(1, MAX_U32),
    "liveness_ms": integer(1, MAX_U32),
}
"""Header keys besides COMMON; a key means the same in every message type that has it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one message type is laid out in its three frames.

    Attributes:
        kind: the message class.
        header: header keys besides COMMON; each is a field of the class, or of its payload.
        rows: none; any number; one or more; or one or more request ids.
        body: what the third frame holds.
    """

    kind: type[Any]
    header: Mapping[str, Check]
    rows: Rows
    body: Body


def _layout(kind: type[Any], keys: str, *, rows: Rows = "none", body: Body = "none") -> Layout:
    checks = {key: _KEYS[key] for key in keys.split()}
    if kind is m.Nack:
        checks["wire"] = text(LIMITS.wire_bytes, PRINTABLE)  # empty if no wire is concerned
    return Layout(kind, checks, rows, body)


# The order of keys is the order in which they are packed.
LAYOUTS: Mapping[m.MessageType, Layout] = {
    m.MessageType[layout.kind.__name__.upper()]: layout
    for layout in (
        _layout(m.Hello, "name role token versions", body="model"),
        _layout(m.Welcome, "version ping_ms liveness_ms"),
        _layout(m.Define, "", body="task"),
        _layout(m.Offer, "wire", body="bridge"),
        _layout(m.Accept, "wire bridge"),
        _layout(
            m.Encode,
            "wire task origin reason channel fallback solo mode",
            rows="some",
            body="texts",
        ),
        _layout(
            m.Soft,
            "wire task bridge soft_tokens width dtype stages solo origin",
            rows="some",
            body="payload",
        ),
        _layout(m.Text, "wire task origin reason stages solo", rows="some", body="texts"),
        _layout(
            m.Result,
            "wire task origin reason channel labels payload_bytes stages tokens",
            rows="some",
            body="answers",
        ),
        _layout(m.Piece, "wire task origin offsets", rows="some", body="texts"),
        _layout(m.Nack, "code reason wire retry_after_ms origin", rows="any"),
        _layout(m.Credit, "wire messages bytes"),
        _layout(m.Ping, "busy_ms"),
        _layout(m.Pong, "busy_ms"),
        _layout(m.Cancel, "wire origin", rows="ids"),
        _layout(m.Progress, "stage fraction"),
        _layout(m.Goodbye, "reason"),
    )
}

# -- headers --------------------------------------------------------------------------------

CHANGING: Final = frozenset(
    {"s", "c", "stages", "tokens", "offsets", "messages", "bytes", "busy_ms", "fraction", "stage"}
    | {"reason", "token", "versions"}  # free text, a secret, a list
)
"""Header keys whose values differ from message to message, or must not be cached."""
DIMENSIONS: Final = frozenset({"soft_tokens", "width", "dtype"})
"""Header keys that are fields of a message's payload."""
_BODY_LIMITS: Final[Mapping[Body, int]] = {
    "none": 0,
    "model": LIMITS.hello_bytes,
    "task": LIMITS.define_bytes,
    "bridge": LIMITS.offer_bytes,
    "texts": LIMITS.text_bytes,
    "payload": LIMITS.payload_bytes,
    "answers": max(LIMITS.text_bytes, LIMITS.rows * LIMITS.labels * SCORE_BYTES),
}


def _clipped_reason(value: object) -> str:
    """Free text for people is cut to its limit instead of refused."""
    if value and isinstance(value, str):
        value = clip(value, LIMITS.reason_bytes)
    result: str = REASON(value)
    return result


class Header:
    """The header of one message type: made from a message, and checked in both directions.

    Most of a header is the same in message after message: run, epoch, wire, task, hashes, sizes.
    Such values are checked once and then found again by one lookup, which compares every value and
    its type (in a dict, True equals 1 and 1.0). Values in ``CHANGING`` are checked each time.

    Attributes:
        counted: whether a header field holds something for each row.
        body_limit: most bytes of the third frame.
    """

    def __init__(self, number: m.MessageType, layout: Layout) -> None:
        self.number = int(number)
        self.layout = layout
        self.counted = not layout.header.keys().isdisjoint({"offsets", "tokens"})
        self.body_limit = _BODY_LIMITS[layout.body]
        self._table = {**COMMON, **layout.header}
        self._sent_table = dict(self._table)
        if "reason" in self._table:
            self._sent_table["reason"] = _clipped_reason
        constant = [name for name in self._table if name not in CHANGING]
        changing = [name for name in layout.header if name in CHANGING]
        self._constant = itemgetter(*constant)
        self._changing = tuple((name, self._table[name]) for name in changing)
        self._changing_sent = tuple((name, self._sent_table[name]) for name in changing)
        self._nothing = dict.fromkeys(["s", "c", *changing])
        self._read_all = self._reader(list(layout.header))
        self._read_constant = self._reader([name for name in constant if name in layout.header])
        self._received: dict[tuple[object, ...], dict[str, Any]] = {}
        self._sent: dict[tuple[object, ...], dict[str, Any]] = {}

    def _reader(self, names: Sequence[str]) -> Callable[[object], tuple[Any, ...]]:
        """Reads these header values off a message, as a tuple."""
        of_payload = DIMENSIONS if self.layout.body == "payload" else frozenset()
        paths = [f"payload.{name}" if name in of_payload else name for name in names]
        if len(paths) > 1:
            return attrgetter(*paths)
        if not paths:
            return lambda message: ()
        read = attrgetter(*paths)
        return lambda message: (read(message),)

    def of(self, message: object, envelope: m.Envelope, n: int, checksum: int) -> dict[str, Any]:
        """The header of a message with ``n`` rows, in the order of the table.

        Raises:
            Misfit: a value does not fit its field.
        """
        run, seq, epoch = envelope
        constant = self._read_constant(message)
        key = (constant, run, epoch, n, type(run), type(epoch), *map(type, constant))
        try:
            known = self._sent.get(key)
        except TypeError:  # a list or a map, which cannot be a key
            known = None
        if known is None or not (type(seq) is int and 0 <= seq <= MAX_I63):
            common = (m.PROTOCOL_VERSION, self.number, run, seq, epoch, n, checksum)
            values = dict(zip(self._table, common + self._read_all(message), strict=True))
            found = checked(values, self._sent_table)
            self._keep(self._sent, key, found)
            return found
        result = known.copy()
        result["s"], result["c"] = seq, checksum
        name = ""
        try:
            for name, check in self._changing_sent:
                result[name] = check(getattr(message, name))
        except Misfit as error:
            raise Misfit(error.code, f"{name}: {error}") from None
        return result

    def checked(self, values: dict[str, Any]) -> dict[str, Any]:
        """The checked values of a received header.

        Raises:
            Misfit: a key is missing or unknown, or a value does not fit its field.
        """
        if values.keys() != self._table.keys():
            return checked(values, self._table)
        constant = self._constant(values)
        key = (constant, *map(type, constant))
        try:
            known = self._received.get(key)
        except TypeError:  # a list or a map, which no constant field may hold
            return checked(values, self._table)
        seq, checksum = values["s"], values["c"]
        if known is None or not (
            type(seq) is type(checksum) is int and 0 <= seq <= MAX_I63 and 0 <= checksum <= MAX_U32
        ):
            found = checked(values, self._table)
            self._keep(self._received, key, found)
            return found
        result = known.copy()
        result["s"], result["c"] = seq, checksum
        name = ""
        try:
            for name, check in self._changing:
                result[name] = check(values[name])
        except Misfit as error:
            raise Misfit(error.code, f"{name}: {error}") from None
        return result

    def _keep(
        self,
        known: dict[tuple[object, ...], dict[str, Any]],
        key: tuple[object, ...],
        found: dict[str, Any],
    ) -> None:
        if len(known) >= CACHE_SIZE:
            known.clear()
        known[key] = found | self._nothing


HEADER_OF: Final[Mapping[type[Any], Header]] = {
    layout.kind: Header(number_, layout) for number_, layout in LAYOUTS.items()
}
"""By message class."""
HEADER_NUMBERED: Final[Mapping[int, Header]] = {
    header.number: header for header in HEADER_OF.values()
}
"""By number on the wire."""
TYPE_OF: Mapping[type[Any], m.MessageType] = {
    layout.kind: number_ for number_, layout in LAYOUTS.items()
}
"""Type number by message class."""
