"""Payload and score bytes <-> arrays, without copies; the receiver's check of soft tokens.

The wire is little-endian. On a little-endian host every array here is a view of the message's
buffer.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire.limits import SCORE_BYTES
from agentwire.wire.messages import Payload

_HALF = np.dtype("<f2")
# Conversion of fp16 bits to fp32; see check_rows.
_SHIFT = 13  # between the places of the exponents
_MAGNITUDE = np.uint32(0x7FFF << _SHIFT)  # all bits but the sign
_BIAS = np.float32(2.0**112)  # between the exponents' biases
_INFINITY = 65536.0  # what fp16 infinity becomes


def from_payload(payload: Payload) -> npt.NDArray[np.float16]:
    """float16 [n, M, d]: a read-only view of the payload's bytes.

    Raises:
        RemoteProtocolError: (``bad_payload``) a dtype that is not allowed, or not exactly
            n * M * d values.
    """
    if payload.dtype != "float16":
        raise RemoteProtocolError(NackCode.BAD_PAYLOAD, f"dtype {payload.dtype!r} is not allowed")
    shape = (payload.n, payload.soft_tokens, payload.width)
    if min(shape) < 1:
        raise RemoteProtocolError(NackCode.BAD_PAYLOAD, f"shape {shape} is empty")
    size = memoryview(payload.data).nbytes
    if size != math.prod(shape) * _HALF.itemsize:
        raise RemoteProtocolError(
            NackCode.BAD_PAYLOAD, f"{size} bytes are not {shape} {payload.dtype}"
        )
    array = np.frombuffer(payload.data, dtype=_HALF).reshape(shape)
    array.flags.writeable = False
    return array


def check_rows(array: npt.NDArray[np.float16], rms_range: tuple[float, float]) -> dict[int, str]:
    """Rows that must not reach a model: row index -> reason. Empty: all are valid.

    A row is valid if every value is finite and the RMS of each of its soft tokens lies within
    ``rms_range`` (ends included).

    Args:
        array: float16 [n, M, d].
        rms_range: lowest and highest RMS of one soft token, from the bridge card.
    """
    # The bits of |x| moved to their fp32 places are x * 2**-112, subnormals included: exact, and
    # five times faster than numpy's conversion. A value that is not finite becomes 2**16 or more.
    # fp32 can hold the sum of 65,536 squares of the largest fp16.
    bits = np.ascontiguousarray(array).view("<u2").astype(np.uint32)
    bits <<= _SHIFT
    bits &= _MAGNITUDE
    values = bits.view(np.float32)
    values *= _BIAS
    finite = values.max(axis=2) < _INFINITY
    squares = np.einsum("nmd,nmd->nm", values, values)
    rms = np.sqrt(squares / array.shape[2])
    if finite.all() and rms.min() >= rms_range[0] and rms.max() <= rms_range[1]:
        return {}
    return _invalid_rows(rms, finite, rms_range)


def check_rms(rms: npt.NDArray[np.float32], rms_range: tuple[float, float]) -> dict[int, str]:
    """Like ``check_rows``, if the RMS [n, M] of each soft token was computed elsewhere."""
    if rms.min() >= rms_range[0] and rms.max() <= rms_range[1]:  # false for NaN
        return {}
    return _invalid_rows(rms, np.isfinite(rms), rms_range)


def _invalid_rows(
    rms: npt.NDArray[np.float32], finite: npt.NDArray[np.bool_], rms_range: tuple[float, float]
) -> dict[int, str]:
    low, high = rms_range
    valid = finite & (rms >= low) & (rms <= high)
    reasons = {}
    for row in np.flatnonzero(~valid.all(axis=1)):
        token = int(np.flatnonzero(~valid[row])[0])
        if not finite[row, token]:
            reasons[int(row)] = f"soft token {token} is not finite"
        else:
            reasons[int(row)] = (
                f"soft token {token} has RMS {rms[row, token]:.4g}, outside [{low:.4g}, {high:.4g}]"
            )
    return reasons


def from_scores(scores: bytes | memoryview, n: int, labels: int) -> list[tuple[float, ...]]:
    """The log-probabilities of a Result: n rows of L numbers.

    Plain Python numbers: for so few, numpy would be several times slower.

    Raises:
        RemoteProtocolError: (``malformed``) not n * L values, or one that is NaN or +inf, which a
            log-probability cannot be. -inf is allowed: the model rules that label out.
    """
    size = memoryview(scores).nbytes
    if n < 1 or labels < 1 or size != n * labels * SCORE_BYTES:
        raise RemoteProtocolError(
            NackCode.MALFORMED, f"{size} bytes are not {n} x {labels} float32 scores"
        )
    rows = list(struct.iter_unpack(f"<{labels}f", scores))
    for row in rows:
        for score in row:
            if not score < math.inf:  # also catches NaN
                raise RemoteProtocolError(NackCode.MALFORMED, "a score is NaN or +inf")
    return rows
