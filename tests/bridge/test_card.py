"""Reading, writing and validating card.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bridge_shapes import small_card

from agentwire.bridge.card import CARD_FILE, MAX_CARD_BYTES, read_card, write_card
from agentwire.errors import BridgeError
from agentwire.wire.codec import decode, encode
from agentwire.wire.messages import Envelope, Offer


def refused(folder: Path) -> str:
    with pytest.raises(BridgeError) as error:
        read_card(folder)
    assert error.value.hint
    assert "\n" not in str(error.value)
    return error.value.message


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    card = small_card(description="größer: *a*", prompts=("any", "c" * 64))
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card


def test_its_identity_crosses_the_wire(tmp_path: Path) -> None:
    offer = Offer("a->b", small_card().identity())
    frames = encode(offer, Envelope(bytes(16), 0, 1))
    assert decode([bytes(f) for f in frames])[1] == offer
    assert (offer.bridge.soft_tokens, offer.bridge.width) == (4, 10)


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw.update(values)


def part(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw[name].update(values)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda raw: raw.pop("layer"), "layer"),
        (changed(colour="red"), "colour"),
        (changed(name=""), "name"),
        (changed(name="x" * 129), "name"),
        (changed(layer=0), "layer"),
        (changed(layer=7), "layer 7 does not exist in a sender with 6"),
        (changed(layer="three"), "layer"),
        (changed(soft_tokens=0), "soft_tokens"),
        (changed(soft_tokens=513), "soft_tokens"),
        (changed(heads=3), "3 heads do not divide"),
        (changed(blocks=1_000_000), "blocks"),
        (changed(hidden=10**9), "hidden"),
        (changed(feed_forward=10**6), "feed_forward"),
        (part("receiver", width=10**6), "receiver.width"),
        (part("sender", layers=10**6), "sender.layers"),
        (changed(rms_range=[2.0, 1.0]), "rms_range"),
        (changed(rms_range=[0.0, 1.0]), "rms_range"),
        (changed(rms_range=[1.0, float("inf")]), "rms_range"),
        (changed(rms_range=[float("nan"), 1.0]), "rms_range"),
        (changed(rms_range=[1.0]), "rms_range"),
        (changed(prompts=[]), "prompts"),
        (changed(prompts=["sst2"]), "prompts"),
        (changed(prompts=["A" * 64]), "prompts"),
        (changed(prompts=["any", "a" * 63]), "prompts"),
        (changed(prompts=["any\n"]), "prompts"),
        (changed(prompts=["a" * 64] * 257), "prompts"),
        (changed(weights_sha256="xyz"), "weights_sha256"),
        (part("sender", fingerprint="0"), "sender.fingerprint"),
        (part("sender", extra=1), "sender.extra"),
        (changed(training=None), "training"),
    ],
)
def test_a_bad_card_is_refused_with_the_key(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], where: str
) -> None:
    raw = small_card().model_dump(mode="json")
    spoil(raw)
    (tmp_path / CARD_FILE).write_text(json.dumps(raw))
    assert where in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just words",
        b"- a\n- list",
        b"name: [",
        b"\xff\xfe\x00binary",
        b"name: !!python/object/apply:os.system [exit 1]",
        b"[" * 50_000,
        b"date: 2026-99-99",
        b"layer: " + b"9" * 5000,
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: *c",
    ],
)
def test_files_that_are_not_cards_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CARD_FILE).write_bytes(content)
    assert CARD_FILE in refused(tmp_path)


def test_missing_too_large_or_a_folder(tmp_path: Path) -> None:
    assert "holds no card.yaml" in refused(tmp_path)
    assert "holds no card.yaml" in refused(tmp_path / "nowhere")
    (tmp_path / CARD_FILE).write_bytes(b"#" * (MAX_CARD_BYTES + 1))
    assert "exceeds the size limit" in refused(tmp_path)
    (tmp_path / CARD_FILE).unlink()
    (tmp_path / CARD_FILE).mkdir()
    assert "cannot be read" in refused(tmp_path)
