"""The header of each message type: how it is made of a message, and checked in both directions.

Most of a header is the same in message after message: run, epoch, wire, task, hashes, sizes. Such
values were checked when they came first, and are known again by one look-up, which compares every
value and its type (to a dict True is 1, and 1.0 as well). What changes (``CHANGING``) is checked
each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final

from agentwire.wire import fields
from agentwire.wire.bodies import clip
from agentwire.wire.fields import HEADERS, LAYOUTS, Layout, Misfit
from agentwire.wire.limits import DEFAULT_LIMITS, SCORE_BYTES, Limits
from agentwire.wire.messages import PROTOCOL_VERSION, Envelope, MessageType

CHANGING: Final = frozenset(
    {"s", "c", "stages", "tokens", "offsets", "messages", "bytes", "busy_ms", "fraction", "stage"}
    | {"reason", "token", "versions"}  # free text, a secret, a list
)
"""Header keys whose values differ from message to message, or are not to be kept."""
NUMBERS: Final = frozenset({"s", "c"})
KNOWN: Final = 256
"""Sets of constant values kept for each type; a set holds less than a header (4 KiB)."""
DIMENSIONS: Final = frozenset({"soft_tokens", "width", "dtype"})
"""Header keys that are fields of a message's payload."""
RECORD_LIMITS: Final = {"model": "hello_bytes", "task": "define_bytes", "bridge": "offer_bytes"}
"""Which limit holds for each body that is a msgpack map."""


class Header:
    """One message type.

    Attributes:
        number, layout: its number and layout.
        counted: whether a header field holds something for each row.
    """

    def __init__(self, number: MessageType, layout: Layout) -> None:
        self.number = int(number)
        self.layout = layout
        self.counted = not layout.header.keys().isdisjoint({"offsets", "tokens"})
        self._table = HEADERS[number]
        self._keys = self._table.keys()
        constant = [name for name in self._table if name not in CHANGING]
        changing = [name for name in self._table if name in CHANGING]
        self._no_values = dict.fromkeys(changing)
        self._constant = itemgetter(*constant)
        own = [name for name in changing if name in layout.header]
        self._changing = tuple((name, self._table[name]) for name in own)
        self._read_all = self._reader(list(layout.header))
        self._read_constant = self._reader([name for name in constant if name in layout.header])
        self._read_changing = self._reader(own)
        self._received: dict[tuple[object, ...], dict[str, Any]] = {}
        self._sent: dict[tuple[object, ...], dict[str, Any]] = {}

    def _reader(self, names: Sequence[str]) -> Callable[[object], tuple[Any, ...]]:
        """Reads these header values off a message, as a tuple."""
        of_payload = DIMENSIONS if self.layout.body == "payload" else frozenset()
        where = [f"payload.{name}" if name in of_payload else name for name in names]
        if len(where) > 1:
            return attrgetter(*where)
        if not where:
            return lambda message: ()
        read = attrgetter(*where)
        return lambda message: (read(message),)

    def of(
        self, message: object, envelope: Envelope, n: int, checksum: int, limits: Limits
    ) -> dict[str, Any]:
        """The header of a message with ``n`` rows, in the order of the table.

        Raises:
            Misfit: a value does not fit its field.
        """
        run, seq, epoch = envelope
        constant = self._read_constant(message)
        key = (constant, run, epoch, n, type(run), type(epoch), *map(type, constant))
        try:
            known = self._sent.get(key) if limits is DEFAULT_LIMITS else None
        except TypeError:  # a list or a map
            known = None
        if known is None or not _fits(seq, fields.MAX_I63):
            found = self._first(message, envelope, n, checksum, limits)
            if limits is DEFAULT_LIMITS:
                self._keep(self._sent, key, found)
            return found
        result = known.copy()
        result["s"], result["c"] = seq, checksum
        values = self._read_changing(message)
        for (name, check), value in zip(self._changing, values, strict=True):
            if name == "reason":
                value = _clipped(value, limits)
            try:
                result[name] = check(value, limits)
            except Misfit as error:
                raise Misfit(error.code, f"{name}: {error}") from None
        return result

    def _first(
        self, message: object, envelope: Envelope, n: int, checksum: int, limits: Limits
    ) -> dict[str, Any]:
        run, seq, epoch = envelope
        common = (PROTOCOL_VERSION, self.number, run, seq, epoch, n, checksum)
        values = dict(zip(self._table, common + self._read_all(message), strict=True))
        if "reason" in values:
            values["reason"] = _clipped(values["reason"], limits)
        return fields.checked(values, self._table, limits)

    def checked(self, values: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """The same as ``fields.checked`` with this type's table, of a header that came."""
        if limits is not DEFAULT_LIMITS or values.keys() != self._keys:
            return fields.checked(values, self._table, limits)
        constant = self._constant(values)
        key = (constant, *map(type, constant))
        try:
            known = self._received.get(key)
        except TypeError:  # a list or a map: not what may be there
            return fields.checked(values, self._table, limits)
        seq, checksum = values["s"], values["c"]
        if known is None or not (_fits(seq, fields.MAX_I63) and _fits(checksum, fields.MAX_U32)):
            found = fields.checked(values, self._table, limits)
            self._keep(self._received, key, found)
            return found
        result = known.copy()
        result["s"], result["c"] = seq, checksum
        for name, check in self._changing:
            try:
                result[name] = check(values[name], limits)
            except Misfit as error:
                raise Misfit(error.code, f"{name}: {error}") from None
        return result

    def _keep(
        self,
        known: dict[tuple[object, ...], dict[str, Any]],
        key: tuple[object, ...],
        found: dict[str, Any],
    ) -> None:
        if len(known) >= KNOWN:
            known.clear()
        known[key] = found | self._no_values

    def body_limit(self, limits: Limits) -> int:
        """Most bytes of the third frame."""
        match self.layout.body:
            case "payload":
                return limits.payload_bytes
            case "none":
                return 0
            case "texts":
                return limits.text_bytes
            case "answers":
                return max(limits.text_bytes, limits.rows * limits.labels * SCORE_BYTES)
            case record:
                size: int = getattr(limits, RECORD_LIMITS[record])
                return size


def _fits(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _clipped(reason: object, limits: Limits) -> object:
    """Free text for people is cut to its limit instead of refused."""
    return clip(reason, limits.reason_bytes) if reason and isinstance(reason, str) else reason


HEADER_OF: Final[Mapping[type[Any], Header]] = {
    layout.kind: Header(number, layout) for number, layout in LAYOUTS.items()
}
"""By message class."""
HEADER_NUMBERED: Final[Mapping[int, Header]] = {
    header.number: header for header in HEADER_OF.values()
}
"""By number on the wire."""
