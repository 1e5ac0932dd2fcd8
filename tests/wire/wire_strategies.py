"""Hypothesis strategies: valid messages of every type, at small sizes."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from agentwire.errors import NackCode
from agentwire.wire import messages as m

ids = st.binary(min_size=16, max_size=16)
names = st.text("abcxyz019_-", min_size=1, max_size=20)
origins = st.just("") | names
wires = st.builds("{}->{}".format, names, names) | names.map(m.direct_wire)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
reasons = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
u32 = st.integers(0, 2**32 - 1)
numbers = st.floats(0, 1e9)
stages = st.dictionaries(names, numbers, max_size=4)

envelopes = st.builds(
    m.Envelope, run=ids, seq=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**63 - 1)
)
models = st.builds(
    m.ModelIdentity,
    name=texts.filter(bool),
    fingerprint=hashes,
    width=st.integers(1, 65536),
    layers=st.integers(1, 1024),
    embedding_rms=numbers,
    dtype=names,
    device=names,
)
bridges = st.builds(
    m.BridgeIdentity,
    name=texts.filter(bool),
    fingerprint=hashes,
    sender=hashes,
    receiver=hashes,
    layer=st.integers(0, 1024),
    soft_tokens=st.integers(1, 512),
    width=st.integers(1, 65536),
    prompts=st.just(("any",)) | st.lists(hashes, min_size=1, max_size=3).map(tuple),
    rms_range=st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair))),
)
relays = st.builds(m.RelaySpec, template=texts, max_new_tokens=st.integers(0, 65536))
tasks = st.builds(
    m.TaskSpec,
    name=texts.filter(bool),
    prompt=texts,
    text_prompt=texts,
    labels=st.lists(texts.filter(bool), max_size=4).map(tuple),
    relay=relays,
    max_new_tokens=st.integers(0, 65536),
    decoding=st.builds(
        m.Decoding,
        temperature=st.integers(0, 10_000),
        top_p=st.integers(1, 1000),
        seed=u32,
        stop=st.lists(texts.filter(bool), max_size=3).map(tuple),
        stream=st.booleans(),
    ),
    form=st.sampled_from(["text", "plain", "chat"]),
)


def some_rows(low: int = 1, asks: bool = False) -> st.SearchStrategy[tuple[m.Row, ...]]:
    row = st.builds(
        m.Row,
        request_id=ids,
        ms_left=st.none() | u32,
        trace_id=ids,
        size=st.just(0),
        question=texts if asks else st.just(""),
    )
    return st.lists(row, min_size=low, max_size=4, unique_by=lambda r: r.request_id).map(tuple)


@st.composite
def rows_and_texts(draw: st.DrawFn, asks: bool = False) -> dict[str, Any]:
    rows = draw(some_rows(asks=asks))
    parts = tuple(draw(texts) for _ in rows)
    sized = tuple(
        row._replace(size=len(part.encode())) for row, part in zip(rows, parts, strict=True)
    )
    return {"rows": sized, "texts": parts}


@st.composite
def rows_and_payload(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(some_rows(asks=True))
    soft_tokens, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    size = len(rows) * soft_tokens * width * 2
    data = draw(st.binary(min_size=size, max_size=size))
    return {"rows": rows, "payload": m.Payload(data, len(rows), soft_tokens, width)}


@st.composite
def rows_and_scores(draw: st.DrawFn) -> dict[str, Any]:
    rows, labels = draw(some_rows()), draw(st.integers(1, 4))
    values = [draw(st.floats(-50, 0, width=32)) for _ in range(len(rows) * labels)]
    tokens = draw(st.just(b"") | st.binary(min_size=8 * len(rows), max_size=8 * len(rows)))
    scores = struct.pack(f"<{len(values)}f", *values)
    return {"rows": rows, "labels": labels, "scores": scores, "tokens": tokens}


def with_rows(
    kind: Any, content: st.SearchStrategy[dict[str, Any]], **others: Any
) -> st.SearchStrategy[Any]:
    return st.tuples(content, st.fixed_dictionaries(others)).map(lambda p: kind(**p[0], **p[1]))


@st.composite
def pieces(draw: st.DrawFn) -> m.Piece:
    content = draw(rows_and_texts())
    offsets = tuple(draw(u32) for _ in content["rows"])
    return m.Piece(
        **content, offsets=offsets, wire=draw(wires), task=draw(hashes), origin=draw(origins)
    )


work = {"wire": wires, "task": hashes, "origin": origins}
channels = st.sampled_from(m.Channel)
by_type: dict[type[Any], st.SearchStrategy[Any]] = {
    m.Hello: st.builds(
        m.Hello,
        name=names,
        role=st.sampled_from([m.Role.AGENT, m.Role.CLIENT]),
        token=origins,
        model=st.none() | models,
        versions=st.lists(st.integers(1, 65535), min_size=1, max_size=3).map(tuple),
    ),
    m.Welcome: st.builds(
        m.Welcome,
        version=st.integers(1, 65535),
        ping_ms=st.integers(1, 2**32 - 1),
        liveness_ms=st.integers(1, 2**32 - 1),
    ),
    m.Define: st.builds(m.Define, task=tasks),
    m.Offer: st.builds(m.Offer, wire=wires, bridge=bridges),
    m.Accept: st.builds(m.Accept, wire=wires, bridge=hashes),
    m.Encode: with_rows(
        m.Encode,
        rows_and_texts(asks=True),
        **work,
        channel=channels,
        fallback=st.sampled_from(["text", "error"]),
        reason=reasons,
        solo=st.booleans(),
        mode=st.sampled_from(m.Mode),
    ),
    m.Soft: with_rows(
        m.Soft, rows_and_payload(), **work, bridge=hashes, stages=stages, solo=st.booleans()
    ),
    m.Text: with_rows(
        m.Text, rows_and_texts(asks=True), **work, reason=reasons, stages=stages, solo=st.booleans()
    ),
    m.Result: with_rows(
        m.Result,
        rows_and_scores() | rows_and_texts(),
        **work,
        channel=channels,
        payload_bytes=u32,
        reason=reasons,
        stages=stages,
    ),
    m.Piece: pieces(),
    m.Nack: st.builds(
        m.Nack,
        code=st.sampled_from(NackCode),
        reason=reasons,
        wire=st.just("") | wires,
        rows=some_rows(0),
        retry_after_ms=u32,
        origin=origins,
    ),
    m.Credit: st.builds(m.Credit, wire=wires, messages=u32, bytes=st.integers(0, 2**63 - 1)),
    m.Ping: st.builds(m.Ping, busy_ms=u32),
    m.Pong: st.builds(m.Pong, busy_ms=u32),
    m.Progress: st.builds(m.Progress, stage=texts.filter(bool), fraction=st.floats(0, 1)),
    m.Cancel: st.builds(
        m.Cancel,
        wire=wires,
        request_ids=st.lists(ids, min_size=1, max_size=4, unique=True).map(tuple),
        origin=origins,
    ),
    m.Goodbye: st.builds(m.Goodbye, reason=reasons),
}
any_message = st.one_of(*by_type.values())
