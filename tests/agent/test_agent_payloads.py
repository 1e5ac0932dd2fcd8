"""Payloads: exact bytes, no copies, and the receiver's check of each row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwire.agent.compute import check_rms, check_rows
from agentwire.agent.validation import from_payload
from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire.messages import Payload

RANGE = (0.5, 2.0)


def soft_tokens(n: int = 3, m: int = 2, d: int = 8) -> np.ndarray:
    return np.random.default_rng(0).choice([-1.0, 1.0], (n, m, d)).astype(np.float16)


def test_a_payload_becomes_a_read_only_view_of_its_bytes() -> None:
    array = soft_tokens()
    back = from_payload(Payload(array.tobytes(), *array.shape))
    assert not back.flags.writeable
    np.testing.assert_array_equal(array, back)
    assert np.shares_memory(array, from_payload(Payload(memoryview(array).cast("B"), *array.shape)))


def test_a_payload_is_little_endian() -> None:
    assert from_payload(Payload(bytes.fromhex("003c00c0"), 1, 1, 2)).tolist() == [[[1.0, -2.0]]]


@pytest.mark.parametrize(
    "payload",
    [
        Payload(bytes(11), 1, 2, 3),
        Payload(bytes(13), 1, 2, 3),
        Payload(b"", 0, 2, 3),
        Payload(bytes(24), 1, 2, 3, "float32"),  # type: ignore[arg-type]
        Payload(bytes(12), -1, -2, 3),
    ],
)
def test_a_payload_has_exactly_its_bytes_and_an_allowed_dtype(payload: Payload) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        from_payload(payload)
    assert caught.value.code is NackCode.BAD_PAYLOAD


def test_valid_rows_have_no_reason() -> None:
    assert check_rows(soft_tokens(), RANGE) == {}
    assert check_rows(soft_tokens(), (1.0, 1.0)) == {}  # the ends belong to the range


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_invalidates_only_its_row(value: float) -> None:
    array = soft_tokens()
    array[1, 1, 3] = value
    assert check_rows(array, RANGE) == {1: "soft token 1 is not finite"}


def test_each_soft_token_must_be_in_the_range_not_their_mean() -> None:
    array = soft_tokens()
    array[0, 0] = 0
    array[2, 1] *= 3
    reasons = check_rows(array, RANGE)
    assert set(reasons) == {0, 2}
    assert "soft token 0 has RMS 0" in reasons[0]
    assert "soft token 1 has RMS 3" in reasons[2]


def test_check_rms_agrees_with_check_rows() -> None:
    rms = np.array([[1.0, 1.9], [np.nan, 1.0], [1.0, np.inf], [0.1, 1.0]], np.float32)
    reasons = check_rms(rms, RANGE)
    assert set(reasons) == {1, 2, 3}
    assert reasons[1] == "soft token 0 is not finite" == reasons[2].replace("1", "0")
    assert "RMS 0.1, outside" in reasons[3]
    assert check_rms(rms[:1], RANGE) == {}


def test_the_largest_finite_values_are_out_of_range_not_infinite() -> None:
    array = np.full((1, 1, 65_536), np.finfo(np.float16).max, np.float16)
    assert "RMS 6.55e+04" in check_rows(array, RANGE)[0]


@given(st.binary(min_size=2 * 2 * 3 * 2, max_size=2 * 2 * 3 * 2))
def test_any_bytes_are_checked_without_a_warning(data: bytes) -> None:
    array = from_payload(Payload(data, 2, 2, 3))
    bad = check_rows(array, RANGE)
    for row in range(2):
        with np.errstate(invalid="ignore"):
            rms = np.sqrt(np.mean(array[row].astype(np.float64) ** 2, axis=-1))
        clear = np.isfinite(rms) & (rms > 0.501) & (rms < 1.999)
        if clear.all():
            assert row not in bad
        if not np.isfinite(rms).all() or (rms < 0.499).any() or (rms > 2.001).any():
            assert row in bad
