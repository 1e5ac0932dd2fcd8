"""The header of each message type: how it is read from a message, and checked.

Most of a header is the same in message after message: run, epoch, wire, task, hashes, sizes. Such
values were checked when they came first, and are known again by one look-up, which compares every
value and its type. What changes (``CHANGING``) is checked each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from typing import Any, Final

from agentwire.wire import fields
from agentwire.wire.fields import HEADERS, LAYOUTS, Layout, Misfit
from agentwire.wire.limits import DEFAULT_LIMITS, SCORE_BYTES, Limits
from agentwire.wire.messages import MessageType

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
        names: its header keys besides ``fields.COMMON``.
        counted: whether a header field holds something for each row.
    """

    def __init__(self, number: MessageType, layout: Layout) -> None:
        self.number = int(number)
        self.layout = layout
        self.names = tuple(layout.header)
        self.counted = not layout.header.keys().isdisjoint({"offsets", "tokens"})
        self._table = HEADERS[number]
        self._keys = self._table.keys()
        self._constant = itemgetter(*(name for name in self._table if name not in CHANGING))
        changing = [item for item in self._table.items() if item[0] in CHANGING]
        self._changing = tuple(item for item in changing if item[0] not in NUMBERS)
        self._no_values = dict.fromkeys(name for name, _ in changing)
        self._known: dict[tuple[object, ...], dict[str, Any]] = {}
        payload = layout.body == "payload"
        of = [f"payload.{name}" if payload and name in DIMENSIONS else name for name in self.names]
        self._read = _reader(of)

    def of(self, message: object) -> dict[str, Any]:
        """What a message puts into its header, unchecked.

        Raises:
            AttributeError: it is not of this type.
        """
        return dict(zip(self.names, self._read(message), strict=True))

    def checked(self, values: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """The same as ``fields.checked`` with this type's table."""
        if limits is not DEFAULT_LIMITS or values.keys() != self._keys:
            return fields.checked(values, self._table, limits)
        constant = self._constant(values)
        key = (constant, *map(type, constant))  # to a dict True is 1 and 1.0 is 1
        try:
            known = self._known.get(key)
        except TypeError:  # a list or a map: not what may be there
            return fields.checked(values, self._table, limits)
        seq, checksum = values["s"], values["c"]
        if (
            known is None
            or not (type(seq) is int and 0 <= seq <= fields.MAX_I63)
            or not (type(checksum) is int and 0 <= checksum <= fields.MAX_U32)
        ):
            found = fields.checked(values, self._table, limits)
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = found | self._no_values
            return found
        result = known.copy()
        result["s"], result["c"] = seq, checksum
        name = ""
        try:
            for name, check in self._changing:
                result[name] = check(values[name], limits)
        except Misfit as error:
            raise Misfit(error.code, f"{name}: {error}") from None
        return result

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


def _reader(names: list[str]) -> Callable[[object], tuple[object, ...]]:
    """Reads attributes, dotted ones as well, as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda message: ()
    read = attrgetter(names[0])
    return lambda message: (read(message),)


HEADER_OF: Final[Mapping[type[Any], Header]] = {
    layout.kind: Header(number, layout) for number, layout in LAYOUTS.items()
}
"""By message class."""
HEADER_NUMBERED: Final[Mapping[int, Header]] = {
    header.number: header for header in HEADER_OF.values()
}
"""By number on the wire."""
