"""Payload bytes <-> numpy arrays, without copies, the check of a receiver, and score bytes.

The wire is little-endian. On a little-endian host every array here is a view of the buffer that
came with the message; nothing is converted.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire.limits import SCORE_BYTES
from agentwire.wire.messages import Payload

_WIRE_DTYPES = {"float16": np.dtype("<f2")}  # the allow-list; one dtype in protocol version 1
_SCORES = np.dtype("<f4")
_SHIFT = 13  # between the places of a float16's and a float32's exponent
_SIZE = np.uint32(0x7FFF << _SHIFT)  # all but the sign
_RAISED = np.float32(2.0**112)  # between their exponents' biases
_INFINITY = 65536.0  # what a float16's bits for it mean here


def to_payload(array: npt.NDArray[np.float16]) -> Payload:
    """The payload of float16 [n, M, d]; a view of ``array``, so leave it alone afterwards.

    Raises:
        LocalProtocolError: another dtype or shape. Nothing is cast silently: fp32 states may
            overflow fp16, and only the bridge knows their scale.
    """
    if array.dtype != np.float16 or array.ndim != 3 or 0 in array.shape:
        raise LocalProtocolError(
            f"A payload is float16 [n, M, d], not {array.dtype} {list(array.shape)}.",
            hint="Cast and reshape it where it is made.",
        )
    n, soft_tokens, width = array.shape
    data = np.ascontiguousarray(array, dtype=_WIRE_DTYPES["float16"])
    view = data.reshape(-1).view(np.uint8).data.toreadonly()
    return Payload(view, n=n, soft_tokens=soft_tokens, width=width)


def from_payload(payload: Payload) -> npt.NDArray[np.float16]:
    """float16 [n, M, d]: a read-only view of the payload's bytes.

    Raises:
        RemoteProtocolError: (``bad_payload``) a dtype that is not allowed, or not exactly
            n * M * d values.
    """
    dtype = _WIRE_DTYPES.get(payload.dtype)
    if dtype is None:
        raise RemoteProtocolError(NackCode.BAD_PAYLOAD, f"dtype {payload.dtype!r} is not allowed")
    shape = (payload.n, payload.soft_tokens, payload.width)
    if min(shape) < 1:
        raise RemoteProtocolError(NackCode.BAD_PAYLOAD, f"shape {shape} is empty")
    size = memoryview(payload.data).nbytes
    if size != payload.n * payload.soft_tokens * payload.width * dtype.itemsize:
        raise RemoteProtocolError(
            NackCode.BAD_PAYLOAD, f"{size} bytes are not {shape} {payload.dtype}"
        )
    array = np.frombuffer(payload.data, dtype=dtype).reshape(shape)
    array.flags.writeable = False
    return array


def check_rows(array: npt.NDArray[np.float16], rms_range: tuple[float, float]) -> dict[int, str]:
    """Which rows must not reach a model, and why: row index -> reason. Empty: all are good.

    A row is good when every value is finite and the RMS of each of its soft tokens lies within
    ``rms_range`` (both ends included).

    Args:
        array: float16 [n, M, d].
        rms_range: lowest and highest RMS of one soft token, from the bridge card.
    """
    # The bits of |x| moved to where fp32 has them are x * 2**-112, subnormals too: exact, and five
    # times as fast as numpy's own conversion. What is not finite becomes 2**16 or more. fp32 holds
    # the sum of 65,536 squares of the largest fp16.
    bits = np.ascontiguousarray(array).view("<u2").astype(np.uint32)
    bits <<= _SHIFT
    bits &= _SIZE
    values = bits.view(np.float32)
    values *= _RAISED
    largest = values.max(axis=2)
    squares = np.einsum("nmd,nmd->nm", values, values)
    rms = np.sqrt(squares / array.shape[2])
    return _judge(rms, largest < _INFINITY, rms_range)


def check_rms(rms: npt.NDArray[np.float32], rms_range: tuple[float, float]) -> dict[int, str]:
    """As ``check_rows``, where the RMS [n, M] of each soft token was computed elsewhere."""
    return _judge(rms, np.isfinite(rms), rms_range)


def _judge(
    rms: npt.NDArray[np.float32], finite: npt.NDArray[np.bool_], rms_range: tuple[float, float]
) -> dict[int, str]:
    low, high = rms_range
    if finite.all() and rms.min() >= low and rms.max() <= high:
        return {}
    good = finite & (rms >= low) & (rms <= high)
    reasons = {}
    for row in np.flatnonzero(~good.all(axis=1)):
        token = int(np.flatnonzero(~good[row])[0])
        if not finite[row, token]:
            reasons[int(row)] = f"soft token {token} is not finite"
        else:
            reasons[int(row)] = (
                f"soft token {token} has RMS {rms[row, token]:.4g}, outside [{low:.4g}, {high:.4g}]"
            )
    return reasons


def to_scores(array: npt.NDArray[np.float32]) -> memoryview:
    """The bytes of float32 [n, L] log-probabilities; a view of ``array``.

    Raises:
        LocalProtocolError: another dtype or shape.
    """
    if array.dtype != np.float32 or array.ndim != 2 or 0 in array.shape:
        raise LocalProtocolError(
            f"Scores are float32 [n, L], not {array.dtype} {list(array.shape)}.",
            hint="Cast and reshape them where they are made.",
        )
    data = np.ascontiguousarray(array, dtype=_SCORES)
    return data.reshape(-1).view(np.uint8).data.toreadonly()


def from_scores(scores: bytes | memoryview, n: int, labels: int) -> list[tuple[float, ...]]:
    """The log-probabilities of a Result, row by row: n rows of L.

    In plain numbers: they are few, and numpy would take several times as long for them.

    Raises:
        RemoteProtocolError: (``malformed``) not n * L values, or one that is NaN or +inf, which
            no log-probability is. -inf is one: a label that the model rules out.
    """
    size = memoryview(scores).nbytes
    if n < 1 or labels < 1 or size != n * labels * SCORE_BYTES:
        raise RemoteProtocolError(
            NackCode.MALFORMED, f"{size} bytes are not {n} x {labels} float32 scores"
        )
    rows = list(struct.iter_unpack(f"<{labels}f", scores))
    if any(score != score or score == math.inf for row in rows for score in row):
        raise RemoteProtocolError(NackCode.MALFORMED, "a score is NaN or +inf")
    return rows
