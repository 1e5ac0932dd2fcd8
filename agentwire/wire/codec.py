"""Message <-> frames. The only module that knows msgpack, and the place of every limit.

A message is three frames (after the transport's routing frames)::

    header  msgpack map: the COMMON keys of ``fields`` and the type's own
    rows    msgpack list, one entry a row: [request id, ms left or nil, trace id, size], and a
            question if there is one
    body    by type: fp16 payload, UTF-8 text, fp32 scores, or a msgpack map

The rules:

* ``decode`` raises RemoteProtocolError for bytes that are not a message, and nothing else.
* ``encode`` raises LocalProtocolError for a value that ``decode`` would refuse.
* Each length is checked before anything is built from the bytes it measures.
* Payloads and scores are never copied: both ends pass on the buffer they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Final

import msgpack

try:  # the same CRC-32, ten times faster, if its wheel is installed
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire import fields
from agentwire.wire.fields import (
    HEADER_NUMBERED,
    HEADER_OF,
    Header,
    Layout,
    Misfit,
    malformed,
    too_large,
)
from agentwire.wire.limits import LIMITS, SCORE_BYTES
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

DTYPE_BYTES: Final = {"float16": 2}
"""Payload dtypes that may cross, with bytes per value. Always little-endian."""
PACKER_BYTES = 16 * 1024  # grows for a larger definition
SHORT_MAP, SHORT_MAP_MARK = 15, 0x80  # msgpack marks a map of up to 15 pairs by one byte
STAGES_KEY = b"\xa6stages"  # as a msgpack string
_NO_ID = bytes(fields.ID_BYTES)
_SIZE_AT: Final = Row._fields.index("size")
_SIZE = itemgetter(_SIZE_AT)
_ROW_OF = partial(tuple.__new__, Row)  # without the check of Row._make, which was done before


def _row_of(entry: Sequence[Any]) -> Row:
    return _ROW_OF(entry if len(entry) > fields.PLAIN_ROW else (*entry, ""))


Frame = bytes | memoryview


class Undecodable(RemoteProtocolError):
    """Frames that are not a message, with as much of it as can be trusted.

    Attributes:
        wire, origin: as in the header; "" if there is none.
        rows: whose requests the message carried, if the checksum matched.
    """

    def __init__(self, code: NackCode, message: str) -> None:
        super().__init__(code, message)
        self.wire = ""
        self.origin = ""
        self.rows: tuple[Row, ...] = ()


@dataclass(slots=True, eq=False)
class Sealed:
    """A checked message as received, which a broker forwards without packing it again.

    Attributes:
        header: its header, unpacked.
        rows, body: its other frames; the checksum in the header covers them.
    """

    header: Mapping[str, Any]
    rows: Frame
    body: Frame


# -- encode ---------------------------------------------------------------------------------


def encode(message: Message, envelope: Envelope) -> list[bytes | memoryview]:
    """The three frames of a message.

    ``Row.size`` is filled in here, and ``reason`` is cut to its limit. The body of a payload or of
    scores is the buffer itself, not a copy.

    Raises:
        LocalProtocolError: the message does not fit the protocol: a bug on this side.
    """
    try:
        header = HEADER_OF.get(type(message))
        if header is None:
            raise malformed("not a message type")
        layout = header.layout
        ids: Sequence[Any] = ()
        if layout.rows != "none":
            ids = getattr(message, "request_ids" if layout.rows == "ids" else "rows")
        n = len(ids)
        if header.counted:
            _check_counts(getattr(message, "offsets", None), getattr(message, "tokens", None), n)
        body, sizes = _pack_body(message, layout, n)
        rows = _pack_rows(ids, layout, sizes)
        packed = _pack(header.of(message, envelope, n, crc32(body, crc32(rows))))
        if len(packed) > LIMITS.header_bytes:
            raise _oversized("header", packed, LIMITS.header_bytes)
        if len(rows) > LIMITS.rows_bytes:
            raise _oversized("rows", rows, LIMITS.rows_bytes)
        return [packed, rows, body]
    except Misfit as error:
        raise LocalProtocolError(
            f"A {type(message).__name__} message does not fit the wire: {error}.",
            hint="docs/protocol.md lists each field and its limit.",
        ) from error


def reseal(sealed: Sealed, envelope: Envelope, origin: str) -> list[bytes | memoryview]:
    """The frames of a received message that goes on, numbered anew and for ``origin``.

    Rows, body and checksum stay as received, so the receiver checks what the producer sent. The
    result equals ``encode`` of the message, except for the encoding of numbers and keys.

    Raises:
        LocalProtocolError: the message no longer fits the protocol.
    """
    renewed = {"r": envelope.run, "s": envelope.seq, "e": envelope.epoch, "origin": origin}
    header = _pack({**sealed.header, **renewed})
    if len(header) > LIMITS.header_bytes:
        raise LocalProtocolError(
            f"A header of {len(header)} bytes does not fit the wire.",
            hint=f"The limit is {LIMITS.header_bytes}; use shorter names.",
        )
    return [header, sealed.rows, sealed.body]


def _pack_rows(rows: Sequence[Any], layout: Layout, sizes: Sequence[int]) -> bytes:
    entries: list[Any] = []
    if layout.rows == "ids":
        entries = list(rows)
    else:
        asks = layout.kind in fields.ASKING
        for index, row in enumerate(rows):
            if not isinstance(row, Row):
                raise malformed(f"rows: must hold Row, not {type(row).__name__}")
            entry = [*row[: None if asks and row.question else fields.PLAIN_ROW]]
            entry[_SIZE_AT] = sizes[index] if sizes else 0
            entries.append(entry)
    _check_entries(entries, layout)
    return _pack(entries)


def _pack_body(message: Message, layout: Layout, n: int) -> tuple[Frame, Sequence[int]]:
    """The third frame, and the bytes of each row's part if it is text."""
    value: Any = message
    match layout.body:
        case "payload":
            payload = value.payload
            if payload.n != n:
                raise malformed(f"payload: is of {payload.n} rows, the message of {n}")
            data = _view(payload.data)
            _check_payload(data, n, payload.soft_tokens, payload.width, payload.dtype)
            return data, ()
        case "none":
            return b"", ()
        case "model" | "task" | "bridge":
            return _pack_record(getattr(value, layout.body), layout), ()
        case "answers" if value.labels != 0:
            if value.texts:
                raise malformed("texts: must be empty if there are scores")
            data = _view(value.scores)
            _check_scores(data, n, value.labels)
            return data, ()
        case _:
            if layout.body == "answers" and len(value.scores):
                raise malformed("scores: must be empty if labels is 0")
            return _pack_texts(value.texts, n)


def _pack_texts(texts: Sequence[object], n: int) -> tuple[bytes, list[int]]:
    if len(texts) != n:
        raise malformed(f"texts: has {len(texts)} items for {n} rows")
    parts = []
    for part in texts:
        try:
            fields.ROW_TEXT(part)
        except Misfit as error:
            raise Misfit(error.code, f"texts: {error}") from None
        parts.append(str(part).encode())
    body = b"".join(parts)
    if len(body) > LIMITS.text_bytes:
        raise _oversized("texts", body, LIMITS.text_bytes)
    return body, [len(part) for part in parts]


_RECORDS = {
    "model": (ModelIdentity, fields.MODEL, fields.NONE),
    "task": (TaskSpec, fields.TASK, fields.NONE),
    "bridge": (BridgeIdentity, fields.BRIDGE, fields.BRIDGE_OPTIONAL),
}


def _pack_record(value: object, layout: Layout) -> bytes:
    kind, *tables = _RECORDS[layout.body]
    if value is None and kind is ModelIdentity:
        return b""
    if not isinstance(value, kind):
        raise malformed(f"{layout.body}: must be {kind.__name__}, not {type(value).__name__}")
    try:
        values = fields.checked(fields.plain(value, *tables), *tables)
    except Misfit as error:
        raise Misfit(error.code, f"{layout.body}: {error}") from None
    if kind is TaskSpec:
        values["relay"] = fields.plain(values["relay"], fields.RELAY)
        values["decoding"] = fields.plain(values["decoding"], fields.DECODING)
    body = _pack(values)
    limit = HEADER_OF[layout.kind].body_limit
    if len(body) > limit:
        raise _oversized(layout.body, body, limit)
    return body


# -- decode ---------------------------------------------------------------------------------


def decode(frames: Sequence[bytes | memoryview]) -> tuple[Envelope, Message]:
    """The message in three frames. Payloads and scores are read-only views of the body frame.

    Raises:
        RemoteProtocolError: (always ``Undecodable``) the frames are not a message; nothing else
            is raised, whatever the bytes.
    """
    envelope, message, _ = unseal(frames)
    return envelope, message


def unseal(frames: Sequence[bytes | memoryview]) -> tuple[Envelope, Message, Sealed]:
    """Like ``decode``, and returns what ``reseal`` needs to forward the message."""
    wire, origin, rows = "", "", ()
    try:
        if len(frames) != 3:
            raise malformed(f"has {len(frames)} frames, not 3")
        rows_frame, body = _view(frames[1]), _view(frames[2])
        packed, header, values = _read_header(frames[0])
        layout, take = header.layout, values.pop
        take("v"), take("t")
        n, checksum = take("n"), take("c")
        envelope = tuple.__new__(Envelope, (take("r"), take("s"), take("e")))
        wire, origin = values.get("wire", ""), values.get("origin", "")
        _check_frames(rows_frame, body, header, checksum, n, values)
        entries = _unpack_plain(rows_frame, LIMITS.rows_bytes)
        if type(entries) is not list:
            entries = _unpack(rows_frame, LIMITS.rows_bytes, "rows")
        _check_entries(entries, layout)
        if len(entries) != n:
            raise malformed(f"rows: has {len(entries)} entries, the header says {n}")
        if layout.rows == "ids":
            values["request_ids"] = tuple(entries)
        elif layout.rows != "none":
            rows = values["rows"] = tuple(map(_row_of, entries))
        if header.counted:
            _check_counts(values.get("offsets"), values.get("tokens"), n)
        _read_body(body, layout, values, n)
        return envelope, layout.kind(**values), Sealed(packed, frames[1], frames[2])
    except Misfit as error:
        refused = Undecodable(error.code, str(error))
        refused.wire, refused.origin, refused.rows = wire, origin, rows
        raise refused from None


def _check_frames(
    rows: memoryview,
    body: memoryview,
    header: Header,
    checksum: int,
    n: int,
    values: dict[str, Any],
) -> None:
    if len(rows) > LIMITS.rows_bytes:
        raise _oversized("rows", rows, LIMITS.rows_bytes)
    if len(body) > header.body_limit:
        raise _oversized("body", body, header.body_limit)
    if crc32(body, crc32(rows)) != checksum:
        # A payload of the wrong length is reported as such, although its checksum is wrong too.
        if header.layout.body == "payload":
            dimensions = values["soft_tokens"], values["width"], values["dtype"]
            _check_payload(body, n, *dimensions)
        raise Misfit(NackCode.CHECKSUM, "rows and body do not match the checksum")


def _read_header(frame: Frame) -> tuple[dict[str, Any], Header, dict[str, Any]]:
    """The header as received, its type, and its checked values."""
    header = _unpack_plain(frame, LIMITS.header_bytes)
    # _unpack calls Python for each map, which is needed only if a key may be given twice.
    if not (type(header) is dict and type(frame) is bytes and _has_all_pairs(frame, header)):
        header = _unpack(_view(frame), LIMITS.header_bytes, "header")
    if not isinstance(header, dict):
        raise malformed(f"header: must be a map, not {type(header).__name__}")
    # The version is checked first: a newer protocol may have other keys.
    version = header.get("v")
    if type(version) is not int:
        raise malformed("header: has no version")
    if version != PROTOCOL_VERSION:
        raise Misfit(NackCode.VERSION, f"version {version}, but only {PROTOCOL_VERSION} is spoken")
    number = header.get("t")
    # In a dict True equals 1; in the protocol it is not a number.
    known = HEADER_NUMBERED.get(number) if type(number) is int else None
    if known is None:
        raise malformed("header: unknown message type")
    try:
        return header, known, known.checked(header)
    except Misfit as error:
        raise Misfit(error.code, f"header: {error}") from None


def _read_body(body: memoryview, layout: Layout, values: dict[str, Any], n: int) -> None:
    """Puts the content of the third frame into ``values``."""
    match layout.body:
        case "payload":
            take = values.pop
            m, d, dtype = take("soft_tokens"), take("width"), take("dtype")
            _check_payload(body, n, m, d, dtype)
            values["payload"] = Payload(body, n=n, soft_tokens=m, width=d, dtype=dtype)
        case "none":
            pass  # the limit of the body is 0 bytes, so it is empty
        case "model" | "task" | "bridge":
            values[layout.body] = _read_record(body, layout)
        case "answers" if values["labels"]:
            _check_scores(body, n, values["labels"])
            values["scores"] = body
        case _:
            values["texts"] = _read_texts(body, values["rows"])
            return
    if any(map(_SIZE, values.get("rows", ()))):
        raise malformed("rows: has a size, but the body is not text")


def _read_texts(body: memoryview, rows: Sequence[Row]) -> tuple[str, ...]:
    texts, start = [], 0
    for row in rows:
        try:
            texts.append(str(body[start : start + row.size], "utf-8"))
        except UnicodeDecodeError:
            raise malformed("body: a text is not UTF-8") from None
        start += row.size
    if start != len(body):
        raise malformed("body: the sizes of the rows do not add up to the text")
    return tuple(texts)


def _read_record(body: memoryview, layout: Layout) -> Any:
    kind, *tables = _RECORDS[layout.body]
    if not body and kind is ModelIdentity:
        return None
    value = _unpack(body, len(body), layout.body)  # body_limit was checked
    try:
        return fields.record(kind, *tables)(value)
    except Misfit as error:
        raise Misfit(error.code, f"{layout.body}: {error}") from None


# -- checks of rows and bodies, for both directions -----------------------------------------


def _view(buffer: Frame) -> memoryview:
    """A read-only view of the buffer's bytes, without a copy."""
    if type(buffer) is bytes:
        return memoryview(buffer)
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise malformed("buffer: must be contiguous")
    return view.cast("B").toreadonly() if view.nbytes else memoryview(b"")


def _oversized(what: str, data: Frame, limit: int) -> Misfit:
    return too_large(f"{what}: has {len(data)} bytes; the limit is {limit}")


def _check_entries(entries: Any, layout: Layout) -> None:
    if not isinstance(entries, list):
        raise malformed("rows: must be a list")
    if layout.rows == "none" and entries:
        raise malformed("rows: must be empty in this message")
    if layout.rows in ("some", "ids") and not entries:
        raise malformed("rows: must not be empty in this message")
    if len(entries) > LIMITS.rows:
        raise too_large(f"rows: has {len(entries)} entries; the limit is {LIMITS.rows}")
    if layout.rows == "ids":
        ids = entries
        for entry in entries:
            _check_row([entry, None, _NO_ID, 0])
    else:
        lengths = [fields.PLAIN_ROW]
        if layout.kind in fields.ASKING:
            lengths.append(len(fields.ROW))
        for entry in entries:
            if not isinstance(entry, list) or len(entry) not in lengths:
                expected = " or ".join(map(str, lengths))
                raise malformed(f"rows: an entry must be a list of {expected}")
            request_id, ms_left, trace_id, size = entry[: fields.PLAIN_ROW]
            usual = (
                type(request_id) is type(trace_id) is bytes
                and len(request_id) == len(trace_id) == fields.ID_BYTES
                and (ms_left is None or (type(ms_left) is int and 0 <= ms_left <= fields.MAX_U32))
                and type(size) is int
                and 0 <= size <= LIMITS.text_row_bytes
                and len(entry) == fields.PLAIN_ROW
            )
            if not usual:
                _check_row(entry)  # the table says what is wrong
        ids = [entry[0] for entry in entries] if len(entries) > 1 else entries
    # Outcomes are matched by request id, so a message cannot hold the same one twice.
    if len(ids) > 1 and len(set(ids)) != len(ids):
        raise malformed("rows: the same request id twice")


def _check_row(row: Sequence[object]) -> None:
    for value, (name, check) in zip(row, fields.ROW.items(), strict=False):
        try:
            check(value)
        except Misfit as error:
            raise Misfit(error.code, f"rows: {name}: {error}") from None


def _check_payload(data: memoryview, n: int, soft_tokens: int, width: int, dtype: str) -> None:
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        raise Misfit(NackCode.BAD_PAYLOAD, f"payload: dtype must be one of {list(DTYPE_BYTES)}")
    if len(data) > LIMITS.payload_bytes:
        raise _oversized("payload", data, LIMITS.payload_bytes)
    if len(data) != n * soft_tokens * width * size:
        shape = f"{n} x {soft_tokens} x {width} {dtype}"
        raise Misfit(NackCode.BAD_PAYLOAD, f"payload: {len(data)} bytes are not {shape}")


def _check_scores(data: memoryview, n: int, labels: int) -> None:
    if len(data) != n * labels * SCORE_BYTES:
        raise malformed(f"scores: {len(data)} bytes are not {n} x {labels} float32")


def _check_counts(offsets: Sequence[int] | None, tokens: object, n: int) -> None:
    """Header fields that hold something for each row."""
    if offsets is not None and len(offsets) != n:
        raise malformed(f"offsets: has {len(offsets)} items for {n} rows")
    sizes = (fields.TOKEN_BYTES, fields.JUDGED_BYTES)
    if isinstance(tokens, bytes) and tokens and len(tokens) not in (n * sizes[0], n * sizes[1]):
        raise malformed(f"tokens: {len(tokens)} bytes are not {n} x {sizes[0]} or {sizes[1]}")


# -- msgpack --------------------------------------------------------------------------------


_idle_packers: list[msgpack.Packer] = []
"""Reused across messages: making one costs as much as packing a header."""


def _pack(value: object) -> bytes:
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = msgpack.Packer(use_bin_type=True, buf_size=PACKER_BYTES)
    packed: bytes = packer.pack(value)
    _idle_packers.append(packer)  # not after a failure
    return packed


def _unpack_plain(frame: Frame, limit: int) -> Any:
    """Unpacks with the bounds that msgpack takes from the frame's length; None if it cannot."""
    if len(frame) > limit:
        return None
    try:
        return msgpack.unpackb(frame)
    except Exception:  # _unpack reports what is wrong
        return None


def _has_all_pairs(frame: bytes, header: dict[str, Any]) -> bool:
    """Whether each of the header's maps has as many keys as its encoding announces.

    The only map within a header is ``stages``. If that word occurs once, it is the key.
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


def _unpack(frame: memoryview, limit: int, what: str) -> Any:
    if len(frame) > limit:
        raise _oversized(what, frame, limit)
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
        # msgpack's own message may quote the peer's bytes, so only its type is reported.
        raise malformed(f"{what}: not msgpack ({type(error).__name__})") from None


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Refuses a key given twice: two readers could decode different messages."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise malformed("a key is given twice")
    return result


def _no_extension(code: int, data: bytes) -> object:
    raise malformed("holds a msgpack extension type")
