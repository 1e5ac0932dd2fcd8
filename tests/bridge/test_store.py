"""Bridges on disk: saving, loading, and refusing corrupt or hostile files."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_shapes import SHAPE, small_card, small_module
from safetensors.torch import load_file, save_file

from agentwire.bridge import store
from agentwire.bridge.architectures import ARCHITECTURES
from agentwire.bridge.card import WEIGHTS_FILE, BridgeCard, read_card, write_card
from agentwire.bridge.resampler import Resampler
from agentwire.errors import BridgeError

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.save(tmp_path / "tiny", small_card(), small_module())
    return tmp_path / "tiny"


def reseal(folder: Path, card: BridgeCard | None = None) -> None:
    """Writes the checksum of the current weights into the card, as an attacker would."""
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    card = card or read_card(folder)
    write_card(folder, card.model_copy(update={"weights_sha256": digest}))


def refused(folder: Path, call: Callable[[Path], object] = store.load) -> str:
    with pytest.raises(BridgeError) as error:
        call(folder)
    assert error.value.hint
    return error.value.message


def test_a_saved_bridge_loads_with_fp16_precision(folder: Path) -> None:
    module, loaded = small_module(), store.load(folder)
    assert loaded.card == store.verify(folder) == read_card(folder)
    assert loaded.card.weights_sha256 == store.weights_sha256(folder)
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    for key, value in loaded.module.state_dict().items():
        original = module.state_dict()[key]
        assert value.dtype == torch.float32
        exact = key in ("mean", "std", "alpha")
        assert torch.equal(value, original if exact else original.half().float()), key
    states = torch.randn(3, 5, SHAPE.sender_width)
    mask = torch.ones(3, 5, dtype=torch.bool)
    assert torch.allclose(loaded.module(states, mask), module(states, mask), atol=2e-2)


def test_weights_are_stored_in_fp16_and_statistics_in_fp32(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS_FILE)
    assert {k for k, v in stored.items() if v.dtype != torch.float16} == {"mean", "std", "alpha"}
    assert {path.name for path in folder.iterdir()} == {"card.yaml", WEIGHTS_FILE}


def test_statistics_beyond_fp16_survive(tmp_path: Path) -> None:
    module = small_module()
    module.std[0], module.mean[0] = 1e6, -3e5
    store.save(tmp_path, small_card(), module)
    assert store.load(tmp_path).module.std[0] == 1e6


def test_saving_again_replaces_the_bridge(folder: Path) -> None:
    before = read_card(folder).weights_sha256
    card = store.save(folder, small_card(), small_module(seed=3))
    assert card.weights_sha256 != before
    assert store.load(folder).card == card


def test_a_changed_byte_or_a_cut_file_does_not_match_the_checksum(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    whole = path.read_bytes()
    for content in (whole[:-3] + b"xyz", whole[:-100], whole[:4], b"", whole + b"\0"):
        path.write_bytes(content)
        assert "checksum" in refused(folder)
        assert "checksum" in refused(folder, store.verify)


def test_a_missing_file_or_card(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    assert f"holds no {WEIGHTS_FILE}" in refused(folder)
    (folder / WEIGHTS_FILE).mkdir()
    assert "cannot be read" in refused(folder)
    assert "holds no card.yaml" in refused(folder / "nowhere")


def header(length: int, text: bytes) -> bytes:
    return length.to_bytes(8, "little") + text


def tensor(**changes: Any) -> bytes:
    entry = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **changes}
    text = json.dumps({"latents": entry}).encode()
    return header(len(text), text) + b"\0\0\0\0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"12345",
        header(2**63 - 1, b"{}"),
        header(2**40, b"{}"),
        header(10**8, b"{}"),
        header(2, b"{"),
        header(2, b"[]"),
        header(5, b"\xff\xfe{}}"),
        tensor(shape=[2**62, 2**62]),
        tensor(shape=[-1]),
        tensor(data_offsets=[0, 2**60]),
        tensor(data_offsets=[4, 0]),
        tensor(dtype="EVIL"),
    ],
)
def test_a_hostile_header_is_refused_even_with_its_checksum(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(content)
    reseal(folder)
    assert "not a valid safetensors file" in refused(folder)
    assert "not a valid safetensors file" in refused(folder, store.verify)


class Payload:
    """Would make a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_disguise_runs_nothing(folder: Path, tmp_path: Path, how: str) -> None:
    trap = tmp_path / "trap"
    if how == "torch":
        torch.save({"latents": Payload(trap)}, folder / WEIGHTS_FILE)
    else:
        (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(Payload(trap)))
    reseal(folder)
    assert "not a valid safetensors file" in refused(folder)
    assert not trap.exists()


def without(tensors: Tensors) -> None:
    del tensors["latents"]


def extra(tensors: Tensors) -> None:
    tensors["zzz"] = torch.zeros(2)


def reshaped(tensors: Tensors) -> None:
    tensors["latents"] = torch.zeros(5, 16)


def renamed(tensors: Tensors) -> None:
    tensors["latent"] = tensors.pop("latents")


def integers(tensors: Tensors) -> None:
    tensors["latents"] = torch.zeros(4, 16, dtype=torch.int64)


def filled(key: str, value: float) -> Callable[[Tensors], None]:
    def fill(tensors: Tensors) -> None:
        tensors[key].view(-1)[-1] = value

    return fill


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, "latents"),
        (extra, "zzz"),
        (reshaped, "latents"),
        (renamed, "latent"),
        (integers, "I64"),
    ],
)
def test_tensors_that_the_card_does_not_describe_are_refused(
    folder: Path, change: Callable[[Tensors], None], words: str
) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    reseal(folder)
    assert words in refused(folder)
    assert words in refused(folder, store.verify)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("latents", float("nan"), "latents is not finite"),
        ("blocks.1.up.weight", float("inf"), "blocks.1.up.weight is not finite"),
        ("mean", float("-inf"), "mean is not finite"),
        ("std", 0.0, "std is not positive"),
        ("std", -1.0, "std is not positive"),
        ("alpha", 0.0, "alpha is not positive"),
    ],
)
def test_impossible_weights_are_refused(folder: Path, key: str, value: float, words: str) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    filled(key, value)(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    reseal(folder)
    assert words in refused(folder)


def test_a_card_with_another_shape_is_refused(folder: Path) -> None:
    for changes in ({"blocks": 3}, {"hidden": 32}, {"soft_tokens": 5}, {"feed_forward": 3}):
        reseal(folder, small_card(**changes))
        assert "does not have the tensors" in refused(folder)


def test_verifying_allocates_no_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    class Watched(Resampler):
        def __init__(self, *args: Any, **kw: Any) -> None:
            super().__init__(*args, **kw)
            devices.extend({p.device.type for p in self.parameters()})

    monkeypatch.setitem(ARCHITECTURES._loaded, "resampler", Watched)
    store.verify(folder)
    assert devices == ["meta"]
