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
    octets,
    pack_texts,
    read_texts,
)
from agentwire.wire.fields import Layout, Misfit, malformed, too_large
from agentwire.wire.headers import HEADER_NUMBERED, HEADER_OF, RECORD_LIMITS, Header
from agentwire.wire.limits import DEFAULT_LIMITS, Limits
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

PACKER_BYTES = 16 * 1024  # it grows where a definition is larger
SHORT_MAP, SHORT_MAP_MARK = 15, 0x80  # msgpack: a map of up to 15 pairs is marked by one byte
STAGES_KEY = b"\xa6stages"  # as a msgpack string


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


@dataclass(slots=True, eq=False)
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
    header = HEADER_OF.get(type(message))
    if header is None:
        raise malformed("not a message type")
    layout = header.layout
    ids = _row_ids(message, layout)
    n = len(ids)
    if header.counted:
        check_counts(getattr(message, "offsets", None), getattr(message, "tokens", None), n)
    body, sizes = _pack_body(message, layout, n, limits)
    rows = _pack_rows(ids, layout, sizes, limits)
    packed = _pack(header.of(message, envelope, n, crc32(body, crc32(rows)), limits))
    if len(packed) > limits.header_bytes:
        raise too_large(f"header: has {len(packed)} bytes; the limit is {limits.header_bytes}")
    if len(rows) > limits.rows_bytes:
        raise too_large(f"rows: take {len(rows)} bytes; the limit is {limits.rows_bytes}")
    return [packed, rows, body]


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


def _row_ids(message: Message, layout: Layout) -> Sequence[object]:
    """One item a row: what ``n`` of the header counts."""
    if layout.rows == "none":
        return ()
    if layout.rows == "ids":
        return message.request_ids  # type: ignore[union-attr]
    return message.rows  # type: ignore[union-attr]


def _pack_rows(rows: Sequence[Any], layout: Layout, sizes: Sequence[int], limits: Limits) -> bytes:
    if layout.rows == "ids":
        entries: list[Any] = list(rows)
    else:
        entries = []
        for index, row in enumerate(rows):
            if not isinstance(row, Row):
                raise malformed(f"rows: must hold Row, not {type(row).__name__}")
            size = sizes[index] if sizes else 0
            entries.append(row if row.size == size else row._replace(size=size))
    check_entries(entries, layout, limits)
    return _pack(entries)


def _pack_body(
    message: Message, layout: Layout, n: int, limits: Limits
) -> tuple[Frame, Sequence[int]]:
    """The third frame, and the bytes of each row's part where it is text."""
    value: Any = message
    match layout.body:
        case "payload":
            payload = value.payload
            if payload.n != n:
                raise malformed(f"payload: is of {payload.n} rows, the message of {n}")
            data = octets(payload.data)
            check_payload(data, n, payload.soft_tokens, payload.width, payload.dtype, limits)
            return data, ()
        case "none":
            return b"", ()
        case "model" | "task" | "bridge":
            return _pack_record(getattr(value, layout.body), layout, limits), ()
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
    "model": (ModelIdentity, fields.MODEL),
    "task": (TaskSpec, fields.TASK),
    "bridge": (BridgeIdentity, fields.BRIDGE),
}


def _pack_record(value: object, layout: Layout, limits: Limits) -> bytes:
    kind, table = _RECORDS[layout.body]
    limit = RECORD_LIMITS[layout.body]
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
    envelope, wire, origin, rows = None, "", "", ()
    try:
        if len(frames) != 3:
            raise malformed(f"has {len(frames)} frames, not 3")
        rows_frame, body = octets(frames[1]), octets(frames[2])
        packed = _unpack_header(frames[0], limits)
        header, values = _read_header(packed, limits)
        layout, take = header.layout, values.pop
        take("v"), take("t")
        n, checksum = take("n"), take("c")
        envelope = tuple.__new__(Envelope, (take("r"), take("s"), take("e")))
        wire, origin = values.get("wire", ""), values.get("origin", "")
        _check_frames(rows_frame, body, header, checksum, n, values, limits)
        entries = _unpack_rows(rows_frame, limits)
        check_entries(entries, layout, limits)
        if len(entries) != n:
            raise malformed(f"rows: has {len(entries)} entries, the header says {n}")
        if layout.rows == "ids":
            values["request_ids"] = tuple(entries)
        elif layout.rows != "none":
            rows = values["rows"] = tuple([tuple.__new__(Row, entry) for entry in entries])
        if header.counted:
            check_counts(values.get("offsets"), values.get("tokens"), n)
        _read_body(body, layout, values, n, limits)
        return envelope, layout.kind(**values), Sealed(packed, frames[1], frames[2])
    except Misfit as error:
        refused = Undecodable(error.code, str(error))
        refused.envelope, refused.wire = envelope, wire
        refused.origin, refused.rows = origin, rows
        raise refused from None


def _check_frames(
    rows: memoryview,
    body: memoryview,
    header: Header,
    checksum: int,
    n: int,
    values: Mapping[str, Any],
    limits: Limits,
) -> None:
    if len(rows) > limits.rows_bytes:
        raise too_large(f"rows: frame has {len(rows)} bytes; limit {limits.rows_bytes}")
    most = header.body_limit(limits)
    if len(body) > most:
        raise too_large(f"body: has {len(body)} bytes; limit {most}")
    if crc32(body, crc32(rows)) != checksum:
        # A payload of the wrong length is called that, though its checksum is wrong as well.
        if header.layout.body == "payload":
            check_payload(body, n, values["soft_tokens"], values["width"], values["dtype"], limits)
        raise Misfit(NackCode.CHECKSUM, "rows and body do not match the checksum")


def _read_header(header: Any, limits: Limits) -> tuple[Header, dict[str, Any]]:
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
    known = HEADER_NUMBERED.get(number) if type(number) is int else None
    if known is None:
        raise malformed("header: unknown message type")
    try:
        return known, known.checked(header, limits)
    except Misfit as error:
        raise Misfit(error.code, f"header: {error}") from None


def _read_body(
    body: memoryview, layout: Layout, values: dict[str, Any], n: int, limits: Limits
) -> None:
    """Puts what the third frame holds into ``values``."""
    match layout.body:
        case "payload":
            take = values.pop
            m, d, dtype = take("soft_tokens"), take("width"), take("dtype")
            check_payload(body, n, m, d, dtype, limits)
            _check_no_sizes(values["rows"])
            values["payload"] = Payload(body, n=n, soft_tokens=m, width=d, dtype=dtype)
        case "none":
            _check_no_sizes(values.get("rows", ()))  # the limit of the body is 0 bytes
        case "model" | "task" | "bridge":
            values[layout.body] = _read_record(body, layout, limits)
        case "answers" if values["labels"]:
            check_scores(body, n, values["labels"])
            _check_no_sizes(values["rows"])
            values["scores"] = body
        case _:
            values["texts"] = read_texts(body, values["rows"], limits)


def _check_no_sizes(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.size:
            raise malformed("rows: a size where the body is not text")


def _read_record(body: memoryview, layout: Layout, limits: Limits) -> Any:
    kind, table = _RECORDS[layout.body]
    if not body and kind is ModelIdentity:
        return None
    value = _unpack(body, getattr(limits, RECORD_LIMITS[layout.body]), layout.body)
    try:
        return fields.record(kind, table)(value, limits)
    except Misfit as error:
        raise Misfit(error.code, f"{layout.body}: {error}") from None


# -- both directions ------------------------------------------------------------------------


_idle_packers: list[msgpack.Packer] = []
"""One for each thread that packs at a time: to make one costs as much as to pack a header."""


def _pack(value: object) -> bytes:
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = msgpack.Packer(use_bin_type=True, buf_size=PACKER_BYTES)
    packed: bytes = packer.pack(value)
    _idle_packers.append(packer)  # one that has failed is not used again
    return packed


def _unpack_header(frame: Frame, limits: Limits) -> Any:
    """As ``_unpack``, but a map whose keys are all different is built without a call for each."""
    header = _unpack_plain(frame, limits.header_bytes)
    if type(header) is dict and type(frame) is bytes and _says_all(frame, header):
        return header
    return _unpack(octets(frame), limits.header_bytes, "header")


def _unpack_rows(frame: memoryview, limits: Limits) -> Any:
    """As ``_unpack``, of what holds lists of plain values: there are no other checks to be made."""
    rows = _unpack_plain(frame, limits.rows_bytes)
    return rows if type(rows) is list else _unpack(frame, limits.rows_bytes, "rows")


def _unpack_plain(frame: Frame, limit: int) -> Any:
    """By the bounds that msgpack takes from the frame's length; None: it is for ``_unpack``."""
    if len(frame) > limit:
        return None
    try:
        return msgpack.unpackb(frame)
    except Exception:  # what is wrong, the other says
        return None


def _says_all(frame: bytes, header: dict[str, Any]) -> bool:
    """Whether each of the header's maps has as many keys as it was written with.

    The only map within a header is ``stages``. Where that word stands once, it is its key.
    """
    count = len(header)
    if count > SHORT_MAP:
        counted = frame.startswith(b"\xde") and int.from_bytes(frame[1:3], "big") == count
    else:
        counted = frame[0] == SHORT_MAP_MARK | count
    if not counted:
        return False
    stages = header.get("stages")
    if stages is None:
        return "stages" not in header
    if type(stages) is not dict or len(stages) > SHORT_MAP or frame.count(b"stages") != 1:
        return False
    return frame.find(STAGES_KEY + bytes([SHORT_MAP_MARK | len(stages)])) >= 0


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
