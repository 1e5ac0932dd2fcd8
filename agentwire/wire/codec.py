"""Message <-> frames. The only place that knows msgpack, and the home of every limit.

A message is three frames (after whatever routing frames the transport adds)::

    header  msgpack map, at most 4 KiB: COMMON keys of ``fields`` and the type's own
    rows    msgpack list, one entry a row: [request id, ms left or nil, trace id, size]
    body    by type: fp16 payload, UTF-8 text, fp32 scores, or a msgpack map

The rules:

* ``decode`` raises RemoteProtocolError for bytes that are not a message, and nothing else.
* ``encode`` raises LocalProtocolError for a value that ``decode`` would refuse.
* Every length is checked before anything is built from the bytes that it measures.
* Payloads and scores are never copied: both ends hand on the buffer that they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

try:  # the same CRC-32 at ten times the speed, where the platform has it
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire import fields
from agentwire.wire.bodies import (
    Frame,
    check_counts,
    check_entries,
    check_payload,
    check_scores,
    clip,
    octets,
    pack_texts,
    read_texts,
)
from agentwire.wire.fields import HEADERS, LAYOUTS, TYPE_OF, Layout, Misfit, malformed, too_large
from agentwire.wire.limits import DEFAULT_LIMITS, SCORE_BYTES, Limits
from agentwire.wire.messages import (
    PROTOCOL_VERSION,
    BridgeIdentity,
    Envelope,
    Message,
    ModelIdentity,
    Payload,
    Row,
    TaskSpec,
)

DIMENSIONS = frozenset({"soft_tokens", "width", "dtype"})
"""Header keys that are fields of a message's payload."""


class Undecodable(RemoteProtocolError):
    """Frames that are not a message, with as much of it as could be trusted.

    Attributes:
        envelope: where the header was sound.
        wire, origin: as in the header; "" where there is none.
        rows: whose requests the message carried, where the checksum vouches for them.
    """

    def __init__(self, code: NackCode, message: str) -> None:
        super().__init__(code, message)
        self.envelope: Envelope | None = None
        self.wire = ""
        self.origin = ""
        self.rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """A message as it came and was checked: what a broker hands on without packing it again.

    Attributes:
        header: its header, unpacked.
        rows, body: its other frames, which the checksum in the header covers.
    """

    header: Mapping[str, Any]
    rows: Frame
    body: Frame


# -- encode ---------------------------------------------------------------------------------


def encode(
    message: Message, envelope: Envelope, limits: Limits = DEFAULT_LIMITS
) -> list[bytes | memoryview]:
    """The three frames of a message.

    ``Row.size`` is filled in here. ``reason`` is free text for people: it is cut to its limit
    instead of refused. The body of a payload or of scores is the buffer itself, not a copy.

    Raises:
        LocalProtocolError: the message does not fit the protocol: a bug on this side.
    """
    try:
        return _encode(message, envelope, limits)
    except Misfit as error:
        raise LocalProtocolError(
            f"A {type(message).__name__} message does not fit the wire: {error}.",
            hint="docs/protocol.md lists each field and its limit.",
        ) from None


def _encode(message: Message, envelope: Envelope, limits: Limits) -> list[bytes | memoryview]:
    number = TYPE_OF.get(type(message))
    if number is None:
        raise malformed("not a message type")
    layout = LAYOUTS[number]
    values = _header_values(message, layout, limits)
    ids = _row_ids(message, layout)
    check_counts(values, len(ids))
    body, sizes = _pack_body(message, layout, len(ids), limits)
    rows = _pack_rows(message, layout, sizes, limits)
    common = {
        "v": PROTOCOL_VERSION,
        "t": int(number),
        "r": envelope.run,
        "s": envelope.seq,
        "e": envelope.epoch,
        "n": len(ids),
        "c": _checksum(rows, body),
    }
    header = _pack(fields.checked(common | values, HEADERS[number], limits))
    if len(header) > limits.header_bytes:
        raise too_large(f"header: has {len(header)} bytes; the limit is {limits.header_bytes}")
    if len(rows) > limits.rows_bytes:
        raise too_large(f"rows: take {len(rows)} bytes; the limit is {limits.rows_bytes}")
    return [header, rows, body]


def reseal(
    sealed: Sealed, envelope: Envelope, origin: str, limits: Limits = DEFAULT_LIMITS
) -> list[bytes | memoryview]:
    """The frames of a message that goes on as it came, from another peer and for ``origin``.

    The rows, the body and their checksum stay what they were, so the receiver checks what the
    producer sent. Equal to ``encode`` of the message, but for how numbers and keys are written.

    Raises:
        LocalProtocolError: the message does not fit the protocol any more.
    """
    renewed = {"r": envelope.run, "s": envelope.seq, "e": envelope.epoch, "origin": origin}
    header = _pack({**sealed.header, **renewed})
    if len(header) > limits.header_bytes:
        raise LocalProtocolError(
            f"A header of {len(header)} bytes does not fit the wire.",
            hint=f"The limit is {limits.header_bytes}; use shorter names.",
        )
    return [header, sealed.rows, sealed.body]


def _header_values(message: Message, layout: Layout, limits: Limits) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in layout.header:
        # A payload puts its dimensions into the header.
        of_payload = layout.body == "payload" and name in DIMENSIONS
        values[name] = getattr(message.payload if of_payload else message, name)  # type: ignore[union-attr]
    if isinstance(values.get("reason"), str):
        values["reason"] = clip(values["reason"], limits.reason_bytes)
    return values


def _row_ids(message: Message, layout: Layout) -> Sequence[object]:
    """One item a row: what ``n`` of the header counts."""
    if layout.rows == "none":
        return ()
    if layout.rows == "ids":
        return message.request_ids  # type: ignore[union-attr]
    return message.rows  # type: ignore[union-attr]


def _pack_rows(message: Message, layout: Layout, sizes: Sequence[int], limits: Limits) -> bytes:
    rows = _row_ids(message, layout)
    if layout.rows == "ids":
        entries: list[Any] = list(rows)
    else:
        entries = []
        for index, row in enumerate(rows):
            if not isinstance(row, Row):
                raise malformed(f"rows: must hold Row, not {type(row).__name__}")
            size = sizes[index] if sizes else 0
            entries.append([row.request_id, row.ms_left, row.trace_id, size])
    check_entries(entries, layout, limits)
    return _pack(entries)


def _pack_body(
    message: Message, layout: Layout, n: int, limits: Limits
) -> tuple[Frame, Sequence[int]]:
    """The third frame, and the bytes of each row's part where it is text."""
    value: Any = message
    match layout.body:
        case "none":
            return b"", ()
        case "model" | "task" | "bridge":
            return _pack_record(getattr(value, layout.body), layout, limits), ()
        case "payload":
            if value.payload.n != n:
                raise malformed(f"payload: is of {value.payload.n} rows, the message of {n}")
            data = octets(value.payload.data)
            check_payload(
                data, n, value.payload.soft_tokens, value.payload.width, value.payload.dtype, limits
            )
            return data, ()
        case "answers" if value.labels != 0:
            if value.texts:
                raise malformed("texts: must be empty where there are scores")
            data = octets(value.scores)
            check_scores(data, n, value.labels)
            return data, ()
        case _:
            if layout.body == "answers" and len(value.scores):
                raise malformed("scores: must be empty where labels is 0")
            return pack_texts(value.texts, n, limits)


_RECORDS = {
    "model": (ModelIdentity, fields.MODEL, "hello_bytes"),
    "task": (TaskSpec, fields.TASK, "define_bytes"),
    "bridge": (BridgeIdentity, fields.BRIDGE, "offer_bytes"),
}


def _pack_record(value: object, layout: Layout, limits: Limits) -> bytes:
    kind, table, limit = _RECORDS[layout.body]
    if value is None and kind is ModelIdentity:
        return b""
    if not isinstance(value, kind):
        raise malformed(f"{layout.body}: must be {kind.__name__}, not {type(value).__name__}")
    try:
        values = fields.checked(fields.plain(value, table), table, limits)
    except Misfit as error:
        raise Misfit(error.code, f"{layout.body}: {error}") from None
    if kind is TaskSpec:
        values["relay"] = fields.plain(values["relay"], fields.RELAY)
        values["decoding"] = fields.plain(values["decoding"], fields.DECODING)
    body = _pack(values)
    if len(body) > getattr(limits, limit):
        raise too_large(f"{layout.body}: has {len(body)} bytes; the limit is {limit}")
    return body


# -- decode ---------------------------------------------------------------------------------


def decode(
    frames: Sequence[bytes | memoryview], limits: Limits = DEFAULT_LIMITS
) -> tuple[Envelope, Message]:
    """The message in three frames. Payloads and scores are read-only views of the body frame.

    Raises:
        RemoteProtocolError: (always ``Undecodable``) the frames are not a message; nothing else
            is raised, whatever the bytes.
    """
    envelope, message, _ = unseal(frames, limits)
    return envelope, message


def unseal(
    frames: Sequence[bytes | memoryview], limits: Limits = DEFAULT_LIMITS
) -> tuple[Envelope, Message, Sealed]:
    """As ``decode``, with what ``reseal`` needs to hand the message on."""
    known = _Known()
    try:
        return _decode(frames, limits, known)
    except Misfit as error:
        refused = Undecodable(error.code, str(error))
        refused.envelope, refused.wire = known.envelope, known.wire
        refused.origin, refused.rows = known.origin, known.rows
        raise refused from None


class _Known:
    """What is known so far of a message that may turn out not to be one (``Undecodable``)."""

    __slots__ = ("envelope", "origin", "rows", "wire")

    def __init__(self) -> None:
        self.envelope: Envelope | None = None
        self.wire = self.origin = ""
        self.rows: tuple[Row, ...] = ()


def _decode(
    frames: Sequence[Frame], limits: Limits, known: _Known
) -> tuple[Envelope, Message, Sealed]:
    if len(frames) != 3:
        raise malformed(f"has {len(frames)} frames, not 3")
    header_frame, rows_frame, body = (octets(frame) for frame in frames)
    header = _unpack(header_frame, limits.header_bytes, "header")
    layout, common, values = _read_header(header, limits)
    envelope = Envelope(run=common["r"], seq=common["s"], epoch=common["e"])
    known.envelope = envelope
    known.wire, known.origin = values.get("wire", ""), values.get("origin", "")

    if len(rows_frame) > limits.rows_bytes:
        raise too_large(f"rows: frame has {len(rows_frame)} bytes; limit {limits.rows_bytes}")
    if len(body) > _body_limit(layout, limits):
        raise too_large(f"body: has {len(body)} bytes; limit {_body_limit(layout, limits)}")
    if _checksum(rows_frame, body) != common["c"]:
        # A payload of the wrong length is called that, though its checksum is wrong as well.
        if layout.body == "payload":
            check_payload(
                body,
                common["n"],
                values["soft_tokens"],
                values["width"],
                values["dtype"],
                limits,
            )
        raise Misfit(NackCode.CHECKSUM, "rows and body do not match the checksum")

    entries = _unpack(rows_frame, limits.rows_bytes, "rows")
    check_entries(entries, layout, limits)
    if len(entries) != common["n"]:
        raise malformed(f"rows: has {len(entries)} entries, the header says {common['n']}")
    if layout.rows == "ids":
        values["request_ids"] = tuple(entries)
    elif layout.rows != "none":
        known.rows = values["rows"] = tuple(Row(*entry) for entry in entries)
    if layout.body not in ("texts", "answers") and any(row.size for row in known.rows):
        raise malformed("rows: a size where the body is not text")
    check_counts(values, common["n"])
    _read_body(body, layout, values, common["n"], limits)
    return envelope, layout.kind(**values), Sealed(header, frames[1], frames[2])


_KNOWN_TYPES = {int(kind): (layout, HEADERS[kind]) for kind, layout in LAYOUTS.items()}


def _read_header(header: Any, limits: Limits) -> tuple[Layout, dict[str, Any], dict[str, Any]]:
    if not isinstance(header, dict):
        raise malformed(f"header: must be a map, not {type(header).__name__}")
    # The version comes first: a newer protocol may have other keys.
    version = header.get("v")
    if type(version) is not int:
        raise malformed("header: has no version")
    if version != PROTOCOL_VERSION:
        raise Misfit(
            NackCode.VERSION, f"protocol version {version} is not spoken here: {PROTOCOL_VERSION}"
        )
    number = header.get("t")
    # To a dict True is 1; to the protocol it is no number.
    known = _KNOWN_TYPES.get(number) if type(number) is int else None
    if known is None:
        raise malformed("header: unknown message type")
    layout, table = known
    try:
        values = fields.checked(header, table, limits)
    except Misfit as error:
        raise Misfit(error.code, f"header: {error}") from None
    common = {name: values.pop(name) for name in fields.COMMON}
    return layout, common, values


def _read_body(
    body: memoryview, layout: Layout, values: dict[str, Any], n: int, limits: Limits
) -> None:
    """Puts what the third frame holds into ``values``."""
    match layout.body:
        case "none":
            pass  # its limit is 0 bytes
        case "model" | "task" | "bridge":
            values[layout.body] = _read_record(body, layout, limits)
        case "payload":
            m, d, dtype = (values.pop(name) for name in ("soft_tokens", "width", "dtype"))
            check_payload(body, n, m, d, dtype, limits)
            values["payload"] = Payload(body, n=n, soft_tokens=m, width=d, dtype=dtype)
        case "answers" if values["labels"]:
            check_scores(body, n, values["labels"])
            if any(row.size for row in values["rows"]):
                raise malformed("rows: a size where the body is not text")
            values["scores"] = body
        case _:
            values["texts"] = read_texts(body, values["rows"], limits)


def _read_record(body: memoryview, layout: Layout, limits: Limits) -> Any:
    kind, table, limit = _RECORDS[layout.body]
    if not body and kind is ModelIdentity:
        return None
    value = _unpack(body, getattr(limits, limit), layout.body)
    try:
        return fields.record(kind, table)(value, limits)
    except Misfit as error:
        raise Misfit(error.code, f"{layout.body}: {error}") from None


# -- both directions ------------------------------------------------------------------------


def _body_limit(layout: Layout, limits: Limits) -> int:
    match layout.body:
        case "none":
            return 0
        case "payload":
            return limits.payload_bytes
        case "texts":
            return limits.text_bytes
        case "answers":
            return max(limits.text_bytes, limits.rows * limits.labels * SCORE_BYTES)
    size: int = getattr(limits, _RECORDS[layout.body][2])
    return size


def _checksum(rows: Frame, body: Frame) -> int:
    return crc32(body, crc32(rows))


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map that refuses a key given twice: two readers could take it for different messages."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise malformed("a key is given twice")
    return result


def _no_extension(code: int, data: bytes) -> object:
    raise malformed("holds a msgpack extension type")


def _unpack(frame: memoryview, limit: int, what: str) -> Any:
    if len(frame) > limit:
        raise too_large(f"{what}: has {len(frame)} bytes; the limit is {limit}")
    try:
        return msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=limit,
            max_map_len=limit,
            max_ext_len=0,
        )
    except Misfit:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        # msgpack's own words may quote the peer's bytes; the kind of error says enough.
        raise malformed(f"{what}: not msgpack ({type(error).__name__})") from None
