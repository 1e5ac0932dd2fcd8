"""What the second and third frame may hold, as plain bytes: the checks both directions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentwire.errors import NackCode
from agentwire.wire import fields
from agentwire.wire.fields import Layout, Misfit, malformed, too_large
from agentwire.wire.limits import SCORE_BYTES, Limits
from agentwire.wire.messages import Row

DTYPE_BYTES = {"float16": 2}
"""Payload dtypes that may cross, with bytes per value. Little-endian always."""
_NO_ID = bytes(fields.ID_BYTES)

Frame = bytes | memoryview


def octets(buffer: Frame) -> memoryview:
    """A read-only view of the buffer's bytes, without a copy."""
    if type(buffer) is bytes:
        return memoryview(buffer)
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise malformed("buffer: must be contiguous")
    return view.cast("B").toreadonly() if view.nbytes else memoryview(b"")


def clip(text: str, size: int) -> str:
    """At most ``size`` bytes of UTF-8 of a text for people; surrogates become ``?``."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return data.decode()
    return data[: max(0, size - len("…".encode()))].decode(errors="ignore") + "…"


def _check_row(row: Any, limits: Limits) -> None:
    if not isinstance(row, list | Row) or len(row) != len(fields.ROW):
        raise malformed(f"rows: an entry must be a list of {len(fields.ROW)}")
    request_id, ms_left, trace_id, size = row
    if (
        type(request_id) is type(trace_id) is bytes
        and len(request_id) == len(trace_id) == fields.ID_BYTES
        and (ms_left is None or (type(ms_left) is int and 0 <= ms_left <= fields.MAX_U32))
        and type(size) is int
        and 0 <= size <= limits.text_row_bytes
    ):
        return  # as nearly always; what is wrong with any other, the table says
    for value, (name, check) in zip(row, fields.ROW.items(), strict=True):
        try:
            check(value, limits)
        except Misfit as error:
            raise Misfit(error.code, f"rows: {name}: {error}") from None


def check_entries(entries: Any, layout: Layout, limits: Limits) -> None:
    if not isinstance(entries, list):
        raise malformed("rows: must be a list")
    if layout.rows == "none" and entries:
        raise malformed("rows: must be empty in this message")
    if layout.rows in ("some", "ids") and not entries:
        raise malformed("rows: must not be empty in this message")
    if len(entries) > limits.rows:
        raise too_large(f"rows: has {len(entries)} entries; the limit is {limits.rows}")
    # Outcomes go by request id, so one message cannot ask for the same one twice.
    if layout.rows == "ids":
        ids = entries
        for entry in entries:
            _check_row([entry, None, _NO_ID, 0], limits)
    else:
        for entry in entries:
            _check_row(entry, limits)
        ids = [entry[0] for entry in entries] if len(entries) > 1 else entries
    if len(ids) > 1 and len(set(ids)) != len(ids):
        raise malformed("rows: the same request id twice")


def pack_texts(texts: Sequence[object], n: int, limits: Limits) -> tuple[bytes, list[int]]:
    if len(texts) != n:
        raise malformed(f"texts: has {len(texts)} items for {n} rows")
    parts = []
    for part in texts:
        try:
            fields.text("text_row_bytes")(part, limits)
        except Misfit as error:
            raise Misfit(error.code, f"texts: {error}") from None
        parts.append(str(part).encode())
    body = b"".join(parts)
    if len(body) > limits.text_bytes:
        raise too_large(f"texts: have {len(body)} bytes; the limit is {limits.text_bytes}")
    return body, [len(part) for part in parts]


def read_texts(body: memoryview, rows: Sequence[Row], limits: Limits) -> tuple[str, ...]:
    if sum(row.size for row in rows) != len(body):
        raise malformed("body: the sizes of the rows do not add up to the text")
    texts, start = [], 0
    for row in rows:
        try:
            texts.append(str(body[start : start + row.size], "utf-8"))
        except UnicodeDecodeError:
            raise malformed("body: a text is not UTF-8") from None
        start += row.size
    return tuple(texts)


def check_payload(
    data: memoryview, n: int, soft_tokens: int, width: int, dtype: str, limits: Limits
) -> None:
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        raise Misfit(NackCode.BAD_PAYLOAD, f"payload: dtype must be one of {list(DTYPE_BYTES)}")
    if len(data) > limits.payload_bytes:
        raise too_large(f"payload: {len(data)} bytes; the limit is {limits.payload_bytes}")
    if len(data) != n * soft_tokens * width * size:
        raise Misfit(
            NackCode.BAD_PAYLOAD,
            f"payload: {len(data)} bytes are not {n} x {soft_tokens} x {width} {dtype}",
        )


def check_scores(data: memoryview, n: int, labels: int) -> None:
    if len(data) != n * labels * SCORE_BYTES:
        raise malformed(f"scores: {len(data)} bytes are not {n} x {labels} float32")


def check_counts(offsets: Sequence[int] | None, tokens: object, n: int) -> None:
    """Header fields that hold something for each row: none may lack or be left over."""
    if offsets is not None and len(offsets) != n:
        raise malformed(f"offsets: has {len(offsets)} items for {n} rows")
    if isinstance(tokens, bytes) and len(tokens) not in (0, n * fields.TOKEN_BYTES):
        raise malformed(f"tokens: {len(tokens)} bytes are not {n} x {fields.TOKEN_BYTES}")
