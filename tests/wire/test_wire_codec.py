"""The codec: every message round-trips, and any bytes either decode or are refused."""

from __future__ import annotations

import dataclasses
import typing
import zlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import any_message, by_type, envelopes

from agentwire.errors import LocalProtocolError, NackCode, RemoteProtocolError
from agentwire.wire import fields
from agentwire.wire import messages as m
from agentwire.wire.codec import (
    Undecodable,
    decode,
    encode,
    reseal,
    unseal,
)
from agentwire.wire.fields import clip
from agentwire.wire.limits import LIMITS

RUN = bytes(range(16))
ENVELOPE = m.Envelope(RUN, 7, 3)
ROW = m.Row(b"a" * 16, 1500)
TASK = m.TaskSpec("t", "prompt", "read {text}", ("no", "yes"))
SOFT = m.Soft("a->b", TASK.task_id, "0" * 64, (ROW,), m.Payload(bytes(2 * 3 * 2), 1, 2, 3))


def rewrite(frames: list[bytes | memoryview], **keys: object) -> list[bytes | memoryview]:
    """The same message with other header values; None deletes a key."""
    header = msgpack.unpackb(frames[0]) | keys
    return [msgpack.packb({k: v for k, v in header.items() if v is not None}), *frames[1:]]


def sealed(
    frames: list[bytes | memoryview], rows: object = None, body: bytes | None = None
) -> list[bytes | memoryview]:
    """The same message with other rows or body, and the checksum that belongs to them."""
    second = bytes(frames[1]) if rows is None else msgpack.packb(rows)
    third = bytes(frames[2]) if body is None else body
    return rewrite([frames[0], second, third], c=zlib.crc32(second + third))


def refusal(frames: list[bytes | memoryview]) -> Undecodable:
    with pytest.raises(Undecodable) as caught:
        decode(frames)
    return caught.value


# -- round trip -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", by_type, ids=lambda kind: kind.__name__)
def test_every_type_round_trips(kind: type) -> None:
    @settings(max_examples=40, deadline=None)
    @given(by_type[kind], envelopes)
    def round_trip(message: m.Message, envelope: m.Envelope) -> None:
        frames = encode(message, envelope)
        assert len(frames) == 3
        assert len(frames[0]) <= LIMITS.header_bytes
        assert decode(frames) == (envelope, message)

    round_trip()


@pytest.mark.parametrize(
    "kind", [m.Encode, m.Soft, m.Text, m.Result], ids=lambda kind: kind.__name__
)
def test_a_resealed_message_is_the_same_from_another_peer(kind: type) -> None:
    @settings(max_examples=40, deadline=None)
    @given(by_type[kind], envelopes, envelopes)
    def hand_on(message: m.Message, first: m.Envelope, second: m.Envelope) -> None:
        frames = encode(message, first)
        envelope, came, seal = unseal(frames)
        assert (envelope, came) == (first, message)
        gone = reseal(seal, second, "somebody")
        assert decode(gone) == (second, dataclasses.replace(message, origin="somebody"))
        assert gone[1] is frames[1] and gone[2] is frames[2]

    hand_on()


def test_damage_before_resealing_is_still_detected() -> None:
    _, _, seal = unseal(encode(SOFT, ENVELOPE))
    header, rows, body = reseal(seal, ENVELOPE, "client")
    flipped = bytes([bytes(body)[0] ^ 1]) + bytes(body)[1:]
    assert refusal([header, rows, flipped]).code is NackCode.CHECKSUM


def test_a_sealed_header_that_grows_over_its_limit_is_not_sent() -> None:
    _, _, seal = unseal(encode(SOFT, ENVELOPE))
    with pytest.raises(LocalProtocolError, match="header"):
        reseal(seal, ENVELOPE, "n" * LIMITS.header_bytes)


def test_every_type_and_field_has_a_layout() -> None:
    kinds = set(typing.get_args(m.Message))
    assert set(by_type) == kinds == set(fields.TYPE_OF)
    assert set(fields.LAYOUTS) == set(m.MessageType)
    for layout in fields.LAYOUTS.values():
        carried = set(layout.header)
        carried |= {"none": set(), "ids": {"request_ids"}}.get(layout.rows, {"rows"})
        if layout.body == "payload":
            carried = (carried - {"soft_tokens", "width", "dtype"}) | {"payload"}
        elif layout.body == "answers":
            carried |= {"scores", "texts"}
        elif layout.body != "none":
            carried.add(layout.body)
        assert carried == {field.name for field in dataclasses.fields(layout.kind)}
    for kind, table in [
        (m.ModelIdentity, fields.MODEL),
        (m.BridgeIdentity, {**fields.BRIDGE, **fields.BRIDGE_OPTIONAL}),
        (m.TaskSpec, fields.TASK),
        (m.RelaySpec, fields.RELAY),
    ]:
        assert set(table) == {field.name for field in dataclasses.fields(kind)}
    assert tuple(fields.ROW) == m.Row._fields


def test_defaults_of_every_message_round_trip() -> None:
    for message in [
        m.Hello("a", m.Role.AGENT),
        m.Nack(NackCode.CLOSING, ""),
        m.Ping(),
        m.Goodbye(),
    ]:
        assert decode(encode(message, ENVELOPE))[1] == message


def test_sizes_are_filled_in_for_text_and_cleared_for_the_rest() -> None:
    row = m.Row(b"a" * 16, size=99)
    text = m.Text("a->b", TASK.task_id, (row,), ("größe",))
    soft = dataclasses.replace(SOFT, rows=(row,))
    assert decode(encode(text, ENVELOPE))[1].rows[0].size == 7  # type: ignore[union-attr]
    assert decode(encode(soft, ENVELOPE))[1].rows[0].size == 0  # type: ignore[union-attr]


def test_payloads_and_scores_are_not_copied() -> None:
    data = bytes(range(12))
    soft = dataclasses.replace(SOFT, payload=m.Payload(memoryview(data), 1, 2, 3))
    frames = encode(soft, ENVELOPE)
    assert isinstance(frames[2], memoryview) and frames[2].obj is data
    message = decode(frames)[1]
    assert isinstance(message, m.Soft) and isinstance(message.payload.data, memoryview)
    assert message.payload.data.obj is data and message.payload.data.readonly
    result = m.Result("a->b", TASK.task_id, (ROW,), m.Channel.SOFT, scores=data, labels=3)
    scores = decode(encode(result, ENVELOPE))[1].scores  # type: ignore[union-attr]
    assert isinstance(scores, memoryview) and scores.obj is data


def test_a_view_of_a_wider_type_is_sent_as_bytes() -> None:
    data = memoryview(bytes(12)).cast("H")
    message = decode(encode(dataclasses.replace(SOFT, payload=m.Payload(data, 1, 2, 3)), ENVELOPE))
    assert message[1] == SOFT


def test_the_largest_header_of_every_type_fits() -> None:
    limits = LIMITS
    name, wire = "n" * limits.name_bytes, "w" * limits.wire_bytes
    stages = {f"{index:0{limits.stage_bytes}}": 1e300 for index in range(limits.stages)}
    hello = m.Hello(
        name, m.Role.CLIENT, "t" * limits.token_bytes, versions=(65535,) * limits.versions
    )
    reason = "r" * limits.reason_bytes
    result = m.Result(
        wire, TASK.task_id, (ROW,), m.Channel.TEXT, texts=("",), reason=reason, stages=stages,
        origin=name,
    )  # fmt: skip
    soft = dataclasses.replace(SOFT, wire=wire, stages=stages, origin=name)
    for message in (hello, result, soft):
        frames = encode(message, m.Envelope(RUN, 2**63 - 1, 2**63 - 1))
        assert len(frames[0]) <= limits.header_bytes
    question = "q" * limits.question_bytes
    rows = tuple(
        m.Row(index.to_bytes(16), 2**32 - 1, RUN, question=question) for index in range(limits.rows)
    )
    texts = ("x" * 65_536,) * limits.rows
    frames = encode(m.Text(wire, TASK.task_id, rows, texts), ENVELOPE)
    assert len(frames[1]) <= limits.rows_bytes
    assert len(frames[2]) == limits.text_bytes


def test_a_reason_is_cut_between_characters_and_never_refused() -> None:
    nack = m.Nack(NackCode.MODEL_ERROR, "é" * 1000 + "\ud800")
    reason = decode(encode(nack, ENVELOPE))[1].reason  # type: ignore[union-attr]
    assert reason == "é" * 254 + "…"
    assert clip("as it is", 8) == "as it is"
    assert clip("a\ud800b", 8) == "a?b"


# -- what may not be sent -------------------------------------------------------------------


def bad(message: m.Message, **changes: object) -> m.Message:
    return dataclasses.replace(message, **changes)  # type: ignore[arg-type]


TEXT = m.Text("a->b", TASK.task_id, (ROW,), ("hi",))
RESULT = m.Result("a->b", TASK.task_id, (ROW,), m.Channel.SOFT, scores=bytes(8), labels=2)
BRIDGE = m.BridgeIdentity(
    "b", "1" * 64, "2" * 64, "3" * 64, 15, 8, 640, (TASK.prompt_hash,), (0.1, 2.0)
)


@pytest.mark.parametrize(
    "message",
    [
        bad(TEXT, wire=""),
        bad(TEXT, wire="a b"),
        bad(TEXT, wire="w" * 161),
        bad(TEXT, task="short"),
        bad(TEXT, task="A" * 64),
        bad(TEXT, rows=()),
        bad(TEXT, texts=()),
        bad(TEXT, texts=("a", "b")),
        bad(TEXT, texts=("\ud800",)),
        bad(TEXT, texts=(b"bytes",)),
        bad(TEXT, texts=("x" * (256 * 1024 + 1),)),
        bad(TEXT, rows=(ROW, ROW), texts=("a", "b")),
        bad(TEXT, rows=("row",)),
        bad(TEXT, rows=(m.Row(b"short"),)),
        bad(TEXT, rows=(m.Row(b"a" * 16, -1),)),
        bad(TEXT, rows=(m.Row(b"a" * 16, True),)),
        bad(TEXT, rows=(m.Row(b"a" * 16, 1.5),)),  # type: ignore[arg-type]
        bad(TEXT, rows=(m.Row(b"a" * 16, None, b""),)),
        bad(TEXT, rows=(m.Row(b"a" * 16, question="q" * 2049),)),
        bad(TEXT, rows=(m.Row(b"a" * 16, question="\ud800"),)),
        bad(TEXT, rows=(m.Row(b"a" * 16, question=1),)),  # type: ignore[arg-type]
        bad(TEXT, rows=tuple(m.Row(bytes([i // 256, i % 256]) * 8) for i in range(257)),
            texts=("",) * 257),
        bad(TEXT, solo=1),
        bad(TEXT, stages={"decode": float("nan")}),
        bad(TEXT, stages={"decode": -1.0}),
        bad(TEXT, stages={"decode": True}),
        bad(TEXT, stages={str(index): 1.0 for index in range(17)}),
        bad(TEXT, stages=[1]),
        bad(SOFT, payload=m.Payload(bytes(11), 1, 2, 3)),
        bad(SOFT, payload=m.Payload(bytes(24), 2, 2, 3)),
        bad(SOFT, payload=m.Payload(bytes(12), 1, 2, 3, "float32")),  # type: ignore[arg-type]
        bad(SOFT, payload=m.Payload(b"", 1, 0, 3)),
        bad(SOFT, payload=m.Payload(memoryview(bytes(24))[::2], 1, 2, 3)),
        bad(SOFT, bridge=""),
        bad(RESULT, scores=bytes(7)),
        bad(RESULT, labels=0),
        bad(RESULT, texts=("a",)),
        bad(RESULT, labels=4097),
        bad(RESULT, channel="carrier pigeon"),
        bad(RESULT, payload_bytes=-1),
        m.Hello("", m.Role.AGENT),
        m.Hello("a\nb", m.Role.AGENT),
        m.Hello("a", m.Role.BROKER),
        m.Hello("a", m.Role.AGENT, versions=()),
        m.Hello("a", m.Role.AGENT, model="tiny"),  # type: ignore[arg-type]
        m.Hello("a", m.Role.AGENT, model=m.ModelIdentity("m", "x", 1, 1, 1.0, "float32", "cpu")),
        m.Hello("a", m.Role.AGENT, model=m.ModelIdentity("m", "0" * 64, 0, 1, 1.0, "f", "cpu")),
        m.Offer("a->b", bad(BRIDGE, prompts=())),  # type: ignore[arg-type]
        m.Offer("a->b", bad(BRIDGE, prompts=("some",))),  # type: ignore[arg-type]
        m.Offer("a->b", bad(BRIDGE, rms_range=(2.0, 0.1))),  # type: ignore[arg-type]
        m.Offer("a->b", bad(BRIDGE, rms_range=(0.0, float("inf")))),  # type: ignore[arg-type]
        m.Offer("a->b", bad(BRIDGE, soft_tokens=513)),  # type: ignore[arg-type]
        m.Define(bad(TASK, labels=("",))),  # type: ignore[arg-type]
        m.Define(bad(TASK, prompt="x" * 40_000)),  # type: ignore[arg-type]
        m.Define(bad(TASK, labels=tuple("x" * 200 + str(i) for i in range(400)))),  # type: ignore[arg-type]
        m.Progress("load", 1.5),
        m.Credit("a->b", -1, 0),
        m.Cancel("a->b", ()),
        m.Cancel("a->b", (RUN, RUN)),
        m.Ping(2**32),
        m.Nack("no such code", ""),  # type: ignore[arg-type]
        "not a message",  # type: ignore[list-item]
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_messages_that_do_not_fit_are_not_sent(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError, match="does not fit the wire"):
        encode(message, ENVELOPE)


@pytest.mark.parametrize(
    "envelope", [m.Envelope(b"", 0, 0), m.Envelope(RUN, -1, 0), m.Envelope(RUN, 0, 2**63)]
)
def test_an_envelope_out_of_range_is_not_sent(envelope: m.Envelope) -> None:
    with pytest.raises(LocalProtocolError):
        encode(m.Ping(), envelope)


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"v": 1}, NackCode.VERSION),
        ({"v": True}, NackCode.MALFORMED),
        ({"v": None}, NackCode.MALFORMED),
        ({"t": 99}, NackCode.MALFORMED),
        ({"t": "8"}, NackCode.MALFORMED),
        ({"t": [8]}, NackCode.MALFORMED),
        ({"r": bytes(15)}, NackCode.MALFORMED),
        ({"r": "x" * 16}, NackCode.MALFORMED),
        ({"s": -1}, NackCode.MALFORMED),
        ({"s": True}, NackCode.MALFORMED),
        ({"s": 1.0}, NackCode.MALFORMED),
        ({"s": 2**63}, NackCode.TOO_LARGE),
        ({"n": 2}, NackCode.MALFORMED),
        ({"n": 257}, NackCode.TOO_LARGE),
        ({"c": 1}, NackCode.CHECKSUM),
        ({"extra": 1}, NackCode.MALFORMED),
        ({"wire": None}, NackCode.MALFORMED),
        ({"solo": 1}, NackCode.MALFORMED),
        ({"stages": {"a": "1"}}, NackCode.MALFORMED),
        ({"origin": "a\x1b[2J"}, NackCode.MALFORMED),
        ({"reason": "x" * 513}, NackCode.TOO_LARGE),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(keys: dict[str, object], code: NackCode) -> None:
    assert refusal(rewrite(encode(TEXT, ENVELOPE), **keys)).code is code


def test_numbers_may_be_written_as_integers_but_not_as_booleans() -> None:
    frames = encode(dataclasses.replace(TEXT, stages={"decode": 2.0}), ENVELOPE)
    message = decode(rewrite(frames, stages={"decode": 2}))[1]
    assert message.stages == {"decode": 2.0}  # type: ignore[union-attr]
    assert refusal(rewrite(frames, stages={"decode": True})).code is NackCode.MALFORMED


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        {},
        7,
        [[b"a" * 16, 1500, bytes(16), 3]],
        [[b"a" * 16, 1500, bytes(16)]],
        [[b"a" * 16, 1500, bytes(16), 2, 0]],
        [[b"a" * 16, 1500, bytes(16), -2]],
        [[b"a" * 16, "soon", bytes(16), 2]],
        [["a" * 16, 1500, bytes(16), 2]],
        [{"request_id": b"a" * 16}],
        [[b"a" * 16, 1500, bytes(16), 2]] * 2,
    ],
)
def test_rows_that_break_a_rule_are_refused(rows: object) -> None:
    frames = encode(TEXT, ENVELOPE)
    second = msgpack.packb(rows)
    crc = zlib.crc32(second + bytes(frames[2]))
    assert refusal(rewrite([frames[0], second, frames[2]], c=crc)).code is NackCode.MALFORMED


def test_text_must_be_utf8_and_match_the_sizes_of_its_rows() -> None:
    frames = encode(TEXT, ENVELOPE)
    for body in (b"\xff\xfe", b"h", b"hi!", b""):
        assert refusal(sealed(frames, body=body)).code is NackCode.MALFORMED
    two = bad(TEXT, rows=(ROW, m.Row(b"b" * 16)), texts=("é", "e"))
    rows = [[b"a" * 16, None, RUN, 1], [b"b" * 16, None, RUN, 2]]
    assert "UTF-8" in str(refusal(sealed(encode(two, ENVELOPE), rows=rows)))


@pytest.mark.parametrize("size", [0, 10, 11, 13, 14, 24])
def test_a_payload_of_another_size_is_bad_whatever_its_checksum(size: int) -> None:
    frames = encode(SOFT, ENVELOPE)
    assert refusal([*frames[:2], bytes(size)]).code is NackCode.BAD_PAYLOAD
    error = refusal(sealed(frames, body=bytes(size)))
    assert error.code is NackCode.BAD_PAYLOAD
    # The checksum vouches for the rows, so that their requests can be refused by id.
    assert error.wire == "a->b"
    assert [row.request_id for row in error.rows] == [ROW.request_id]


def test_a_payload_of_another_dtype_or_shape_is_bad() -> None:
    frames = encode(SOFT, ENVELOPE)
    for keys in ({"dtype": "float32"}, {"dtype": "object"}, {"width": 4}, {"soft_tokens": 1}):
        assert refusal(rewrite(frames, **keys)).code is NackCode.BAD_PAYLOAD


def test_scores_of_another_size_are_refused() -> None:
    frames = encode(RESULT, ENVELOPE)
    assert refusal(sealed(frames, body=bytes(12))).code is NackCode.MALFORMED
    assert refusal(rewrite(frames, labels=1)).code is NackCode.MALFORMED
    assert refusal(rewrite(frames, labels=0)).code is NackCode.MALFORMED


def test_only_text_has_sizes() -> None:
    rows = [[b"a" * 16, 1500, bytes(16), 5]]
    assert refusal(sealed(encode(SOFT, ENVELOPE), rows=rows)).code is NackCode.MALFORMED
    assert refusal(sealed(encode(RESULT, ENVELOPE), rows=rows)).code is NackCode.MALFORMED


def test_a_message_without_rows_or_body_has_none() -> None:
    frames = encode(m.Ping(), ENVELOPE)
    assert refusal(sealed(frames, body=b"x")).code is NackCode.TOO_LARGE
    assert refusal(sealed(frames, rows=[[RUN, None, RUN, 0]])).code is NackCode.MALFORMED


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_message_is_three_frames(count: int) -> None:
    assert refusal([*encode(TEXT, ENVELOPE), b""][:count]).code is NackCode.MALFORMED


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        b"\x90",
        b"\xdf\xff\xff\xff\xff",  # a map of four thousand million keys
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 4000,  # nested four thousand deep
        b"\x81" * 4000,
        b"\x81\xa1v\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\xa1v\xc7\x00\x05",  # an empty extension
        b"\x81\xa1v\xd4\x05\x00",
        b"\x81\x01\x01",  # a key that is no string
        b"\x81\xa1\xff\x01",  # a key that is not UTF-8
    ],
)
def test_hostile_msgpack_is_refused(header: bytes) -> None:
    assert refusal([header, b"\x90", b""]).code is NackCode.MALFORMED


def test_a_key_given_twice_is_refused() -> None:
    header, *rest = encode(m.Ping(), ENVELOPE)
    head = bytes(header)
    twice = bytes([head[0] + 1]) + head[1:] + msgpack.packb("busy_ms") + msgpack.packb(5)
    assert "twice" in str(refusal([twice, *rest]))


def test_frames_over_their_limits_are_refused_unread() -> None:
    frames = encode(TEXT, ENVELOPE)
    assert refusal([bytes(4097), *frames[1:]]).code is NackCode.TOO_LARGE
    rows = bytes(LIMITS.rows_bytes + 1)
    assert refusal([frames[0], rows, frames[2]]).code is NackCode.TOO_LARGE
    for message, most in (
        (TEXT, LIMITS.text_bytes),
        (SOFT, LIMITS.payload_bytes),
        (m.Define(TASK), LIMITS.define_bytes),
    ):
        header, rows, _ = encode(message, ENVELOPE)
        assert refusal([header, rows, bytes(most + 1)]).code is NackCode.TOO_LARGE


def test_a_question_crosses_only_where_it_is_asked() -> None:
    asking = ROW._replace(question="Who?")
    frames = encode(bad(TEXT, rows=(asking,)), ENVELOPE)
    assert decode(frames)[1].rows[0].question == "Who?"  # type: ignore[union-attr]
    nack = m.Nack(NackCode.EXPIRED, "", "a->b", (asking,))
    assert decode(encode(nack, ENVELOPE))[1].rows == (ROW,)  # type: ignore[union-attr]
    entry = [ROW.request_id, 1500, bytes(16), 0]
    for row, message in (([*entry, ""], SOFT), ([*entry, 1], SOFT), ([*entry, "Who?"], nack)):
        refused = refusal(sealed(encode(message, ENVELOPE), rows=[row]))
        assert refused.code is NackCode.MALFORMED
    rows = [[*entry, "q" * 2049]]
    assert refusal(sealed(encode(SOFT, ENVELOPE), rows=rows)).code is NackCode.TOO_LARGE


def test_records_have_exactly_their_keys() -> None:
    frames = encode(m.Offer("a->b", BRIDGE), ENVELOPE)
    values = msgpack.unpackb(frames[2])
    for body in (values | {"extra": 1}, {"name": "b"}, [], 1, values | {"width": "640"}):
        assert refusal(sealed(frames, body=msgpack.packb(body))).code is NackCode.MALFORMED
    assert refusal(sealed(frames, body=b"")).code is NackCode.MALFORMED


# -- any bytes at all -----------------------------------------------------------------------


def attempt(frames: list[bytes | memoryview]) -> tuple[m.Envelope, m.Message] | None:
    try:
        return decode(frames)
    except RemoteProtocolError:
        return None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=120), max_size=5))
def test_arbitrary_frames_decode_or_are_refused(frames: list[bytes]) -> None:
    attempt(list(frames))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
plain_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abvtrsenc", max_size=2), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(any_message, st.data())
def test_any_value_in_any_field_decodes_or_is_refused(
    message: m.Message, data: st.DataObject
) -> None:
    frames = encode(message, ENVELOPE)
    header = msgpack.unpackb(frames[0])
    header[data.draw(st.sampled_from(sorted(header)))] = data.draw(plain_values)
    second = msgpack.packb(data.draw(plain_values)) if data.draw(st.booleans()) else frames[1]
    third = msgpack.packb(data.draw(plain_values)) if data.draw(st.booleans()) else frames[2]
    if data.draw(st.booleans()):
        header["c"] = zlib.crc32(bytes(second) + bytes(third))
    attempt([msgpack.packb(header), second, third])


@settings(deadline=None, max_examples=300)
@given(any_message, st.data())
def test_a_flipped_bit_is_refused_wherever_the_checksum_covers_it(
    message: m.Message, data: st.DataObject
) -> None:
    frames = [bytearray(frame) for frame in encode(message, ENVELOPE)]
    index = data.draw(st.sampled_from([i for i in range(3) if frames[i]]))
    bit = data.draw(st.integers(0, 8 * len(frames[index]) - 1))
    frames[index][bit // 8] ^= 1 << (bit % 8)
    got = attempt([bytes(frame) for frame in frames])
    if index > 0:
        assert got is None
    elif got is not None and type(got[1]) is type(message):
        # The header is not under the checksum, but rows and body cannot be read otherwise.
        for field in ("rows", "request_ids", "texts"):
            assert getattr(got[1], field, None) == getattr(message, field, None)


@settings(deadline=None, max_examples=300)
@given(any_message, st.data())
def test_a_truncated_or_extended_message_is_refused(
    message: m.Message, data: st.DataObject
) -> None:
    frames = [bytes(frame) for frame in encode(message, ENVELOPE)]
    index = data.draw(st.integers(0, 2))
    size = data.draw(st.integers(0, len(frames[index]) + 3))
    frames[index] = (frames[index] + b"\x00\x00\x00")[:size]
    got = attempt(list(frames))
    assert (got == (ENVELOPE, message)) == (frames == [bytes(f) for f in encode(message, ENVELOPE)])
    assert got in (None, (ENVELOPE, message))


def test_frames_built_from_the_docs_alone_decode() -> None:
    """Built by hand, in another order and with other integer sizes than the encoder's."""
    body = "Öde.".encode()
    rows = msgpack.packb([[b"i" * 16, None, bytes(16), len(body)]])
    header = {
        "wire": "a->b", "task": "0" * 64, "origin": "", "channel": "soft", "fallback": "error",
        "reason": "", "solo": False, "c": zlib.crc32(rows + body), "n": 1, "e": 1, "s": 4,
        "r": RUN, "t": 6, "v": 2, "mode": "forward",
    }  # fmt: skip
    packed = msgpack.packb(header).replace(b"\xa1s\x04", b"\xa1s\xcf" + (4).to_bytes(8))
    assert decode([packed, rows, body]) == (
        m.Envelope(RUN, 4, 1),
        m.Encode("a->b", "0" * 64, m.Channel.SOFT, "error", (m.Row(b"i" * 16, size=5),), ("Öde.",)),
    )
