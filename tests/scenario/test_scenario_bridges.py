"""Bridge folders are found by name; damaged or hostile weights are refused before loading."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from scenario_files import make_card, write_bridge

from agentwire.bridge.card import CardReader, read_card
from agentwire.errors import BridgeError
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.bridges import (
    check_card,
    check_data,
    check_weights,
    find_bridge,
    list_bridges,
    slug,
)
from agentwire.spec.scenario import DataChoice, ModelChoice, WireSpec

WIRE = WireSpec.model_validate({"from": "a", "to": "b"})
CHOICES = {"a": ModelChoice(model="model-a"), "b": ModelChoice(model="model-b")}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/models/My Model/", "my-model"),
        ("C:\\models\\Tiny", "tiny"),
        ("///", "model"),
    ],
)
def test_slug(model: str, expected: str) -> None:
    assert slug(model) == expected


def test_the_first_folder_with_a_card_is_taken(tmp_path: Path) -> None:
    (tmp_path / "one" / "b").mkdir(parents=True)  # no card in it
    write_bridge(tmp_path / "two" / "b")
    write_bridge(tmp_path / "three" / "b")
    places = [tmp_path / name for name in ("none", "one", "two", "three")]
    assert find_bridge("b", places) == (tmp_path / "two" / "b").resolve()
    assert find_bridge("c", places) is None
    assert list_bridges(places) == [(tmp_path / "two" / "b").resolve()]


def test_a_sound_bridge_passes(tmp_path: Path) -> None:
    folder = write_bridge(tmp_path / "b")
    card = read_card(folder)
    check_weights(folder, card)
    check_card(card, WIRE, CHOICES, {"a": card.sender.fingerprint, "b": None})


def test_fingerprints_decide_where_they_are_known(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="trained for the sender"):
        check_card(make_card(), WIRE, CHOICES, {"a": "f" * 64})


def test_a_threshold_of_confidence_needs_a_reader_whose_card_has_one() -> None:
    reader = CardReader(layers=(0, 2), sizes=(4, 8))
    fields = {"from": "a", "to": "b", "soft_tokens": 8, "fallback_below": "card"}
    wire = WireSpec.model_validate(fields)
    with pytest.raises(BridgeError, match="needs a reader bridge"):
        check_card(make_card(), wire, CHOICES, {})
    with pytest.raises(BridgeError, match="has no `unsure_below`"):
        check_card(make_card(architecture="reader", reader=reader), wire, CHOICES, {})
    reader = reader.model_copy(update={"unsure_below": -0.7})
    card = make_card(architecture="reader", answers="free", reader=reader)
    check_card(card, wire, CHOICES, {})
    deployment = Deployment({}, {wire.name: wire}, cards={wire.name: card})
    assert deployment.fallback_below == {wire.name: -0.7}


@pytest.mark.parametrize("trained_on", ["sst2", "trec+sst2+ag_news", "unknown+sst2"])
def test_rows_that_a_bridge_saw_under_another_name_are_refused(trained_on: str) -> None:
    training = make_card().training.model_copy(update={"dataset": trained_on})
    card = make_card(training=training)
    check_data(card, WIRE, DataChoice(dataset="sst2", split="validation"))
    check_data(card, WIRE, DataChoice(dataset="trec", split="test"))
    with pytest.raises(BridgeError, match="trained on sst2, which shares sentences"):
        check_data(card, WIRE, DataChoice(dataset="movie_snippets", split="test"))


def header(content: object, body: bytes = b"") -> bytes:
    raw = json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + body


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x80\x04\x95pickle",
        struct.pack("<Q", 1 << 62) + b"{}",
        header([1, 2]),
        header({"t": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}, b"1234"),
        header({"t": {"dtype": "F16", "shape": [4], "data_offsets": [0, 1 << 60]}}, b"12345678"),
        header({"t": {"dtype": "F16", "shape": [4], "data_offsets": [-8, 8]}}, b"12345678"),
        header({"t": {"dtype": "F16"}}, b"12345678"),
        header({"t": None}, b"12345678"),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
    ids=[
        "empty", "pickle", "huge header", "list", "short body", "far offset", "negative offset",
        "no offsets", "no tensor", "deep nesting",
    ],
)  # fmt: skip
def test_hostile_or_damaged_weights(tmp_path: Path, weights: bytes) -> None:
    folder = write_bridge(tmp_path / "b", weights=weights)
    with pytest.raises(BridgeError) as caught:
        check_weights(folder, read_card(folder))
    assert caught.value.hint


def test_weights_that_the_card_does_not_name(tmp_path: Path) -> None:
    folder = write_bridge(tmp_path / "b")
    card = read_card(folder)
    path = folder / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(BridgeError, match="not the file that its card names"):
        check_weights(folder, card)


def test_missing_weights(tmp_path: Path) -> None:
    folder = write_bridge(tmp_path / "b")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(BridgeError, match=r"has no weights\.safetensors"):
        check_weights(folder, read_card(folder))
