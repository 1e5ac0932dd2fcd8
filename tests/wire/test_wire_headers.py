"""Headers whose constant part is cached are checked like the first ones."""

from __future__ import annotations

import msgpack
import pytest

from agentwire.errors import NackCode, RemoteProtocolError
from agentwire.wire import fields
from agentwire.wire import messages as m
from agentwire.wire.codec import decode, encode

ENVELOPE = m.Envelope(bytes(16), 7, 3)
ROW = m.Row(bytes(range(16)), 1000)
SOFT = m.Soft(
    "a->b", "0" * 64, "1" * 64, (ROW,), m.Payload(bytes(24), 1, 2, 6), {"encode": 2.0}, False, "c"
)


def changed(message: m.Message, **values: object) -> list[bytes]:
    """Its frames with other header values."""
    frames = [bytes(frame) for frame in encode(message, ENVELOPE)]
    header = msgpack.unpackb(frames[0])
    assert values.keys() <= header.keys()
    return [msgpack.packb(header | values), *frames[1:]]


@pytest.mark.parametrize(
    "values",
    [
        {"solo": 0},
        {"n": True},
        {"n": 1.0},
        {"e": 3.0},
        {"s": True},
        {"s": 7.0},
        {"s": -1},
        {"s": 2**63},
        {"c": 2**32},
        {"c": False},
        {"soft_tokens": 2.0},
        {"wire": b"a->b"},
        {"wire": ["a->b"]},
        {"wire": {"a": 1}},
        {"origin": "c "},
        {"stages": {"encode": -1.0}},
        {"stages": {"encode": float("nan")}},
        {"stages": {"encode": float("inf")}},
        {"stages": {"encode": True}},
        {"stages": {"two words": 1.0}},
        {"stages": {b"encode": 1.0}},
        {"stages": [["encode", 1.0]]},
    ],
)
def test_a_header_equal_to_a_known_one_but_of_other_types_is_refused(
    values: dict[str, object],
) -> None:
    for _ in range(2):
        assert decode(changed(SOFT))[1] == SOFT
    with pytest.raises(RemoteProtocolError) as refused:
        decode(changed(SOFT, **values))
    assert refused.value.code in (NackCode.MALFORMED, NackCode.TOO_LARGE)
    assert decode(changed(SOFT, s=8, stages={"encode": 3}))[0].seq == 8


def test_cached_headers_hold_no_changing_values() -> None:
    for number in range(3):
        envelope = m.Envelope(bytes(16), number, 3)
        soft = m.Soft(
            SOFT.wire, SOFT.task, SOFT.bridge, (ROW,), SOFT.payload, {f"stage{number}": 1.0}
        )
        assert decode(encode(soft, envelope)) == (envelope, soft)
    hello = m.Hello("a", m.Role.AGENT, token="secret")
    decode(encode(hello, ENVELOPE))
    assert "secret" not in repr(fields.HEADER_OF[m.Hello].__dict__)
    for number in range(2 * fields.CACHE_SIZE):
        encode(m.Nack(NackCode.OVERLOADED, "", f"wire{number}"), ENVELOPE)
    assert 0 < len(fields.HEADER_OF[m.Nack]._sent) <= fields.CACHE_SIZE


def pairs(*items: tuple[object, object]) -> bytes:
    """A msgpack map of up to 15 pairs, as they are given."""
    packed = b"".join(msgpack.packb(part) for item in items for part in item)
    return bytes([0x80 | len(items)]) + packed


def header_of(message: m.Message, **packed: bytes) -> list[bytes]:
    """Its frames, with some header values given as msgpack."""
    frames = [bytes(frame) for frame in encode(message, ENVELOPE)]
    header = msgpack.unpackb(frames[0])
    body = b"".join(
        msgpack.packb(name) + packed.get(name, msgpack.packb(value))
        for name, value in header.items()
    )
    mark = bytes([0x80 | len(header)]) if len(header) < 16 else b"\xde" + bytes([0, len(header)])
    return [mark + body, *frames[1:]]


@pytest.mark.parametrize(
    "reason",
    ["", "æstages\x01", "stages", "\ufffdstages", "xstages\x01"],
)
def test_a_stage_given_twice_is_refused(reason: str) -> None:
    text = m.Text(
        "a->b", "0" * 64, (ROW,), ("hello",), reason=reason, stages={"a": 1.0}, origin="c"
    )
    assert decode(header_of(text))[1].stages == {"a": 1.0}  # type: ignore[union-attr]
    with pytest.raises(RemoteProtocolError, match="given twice"):
        decode(header_of(text, stages=pairs(("a", 1.0), ("a", 2.0))))


def test_a_key_given_twice_is_refused_in_short_and_in_long_headers() -> None:
    for message in (m.Ping(5), SOFT):
        frames = header_of(message)
        count = len(msgpack.unpackb(frames[0]))
        again = msgpack.packb("e") + msgpack.packb(3)
        long = count + 1 > 15
        mark = b"\xde" + bytes([0, count + 1]) if long else bytes([0x80 | (count + 1)])
        rest = frames[0][3 if count > 15 else 1 :]
        with pytest.raises(RemoteProtocolError, match="given twice"):
            decode([mark + rest + again, *frames[1:]])


def test_an_unusual_but_valid_encoding_of_a_header_decodes() -> None:
    frames = header_of(SOFT)
    header = msgpack.unpackb(frames[0])
    long_keys = b"".join(
        b"\xd9" + bytes([len(name)]) + name.encode() + msgpack.packb(value)
        for name, value in header.items()
    )
    wide = b"\xdf" + len(header).to_bytes(4, "big")
    assert decode([wide + long_keys, *frames[1:]]) == (ENVELOPE, SOFT)
