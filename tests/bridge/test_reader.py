"""The reader bridge: its maths, its card, and its two halves on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bridge_shapes import reader_card
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_store import refused, reseal

from agentwire.bridge import store
from agentwire.bridge.card import WEIGHTS_FILE, read_card
from agentwire.bridge.reader import Reader, ReceiverHalf, SenderHalf, windows
from agentwire.bridge.shape import ReaderShape
from agentwire.wire.messages import FREE_TEXT


def small_reader(**changes: object) -> Reader:
    torch.manual_seed(0)
    shape = reader_card(**changes).shape
    assert isinstance(shape, ReaderShape)
    module = Reader(shape)
    width = (len(shape.sender_layers), shape.sender_width)
    module.calibrate(torch.randn(width), torch.rand(width) + 0.5, 2.0)
    for vectors in module.receiver.parameters():  # some start at 0, which would show nothing
        torch.nn.init.normal_(vectors, std=0.3)
    return module.eval().requires_grad_(False)


def some_states(n: int = 3, longest: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([longest, 1, 5][:n])
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    return torch.randn(n, longest, 3, 12), mask


def test_windows_cover_each_text_once() -> None:
    weights = windows(torch.tensor([5, 2]), 4, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4))
    assert torch.allclose(weights.mean(1)[0], torch.tensor([0.2] * 5 + [0.0]))
    assert torch.allclose(weights[1, :, 2:], torch.zeros(4, 4))


def test_soft_tokens_have_one_rms_and_additions_their_layers() -> None:
    module = small_reader()
    soft, added = module(*some_states(), 4)
    assert soft.shape == (3, 4, 10) and added is not None and added.shape == (3, 4, 2, 10)
    rms = soft.pow(2).mean(-1).sqrt()
    assert torch.allclose(rms, torch.full_like(rms, float(rms[0, 0])), rtol=1e-3)


def test_a_row_does_not_depend_on_its_batch() -> None:
    module, (states, mask) = small_reader(), some_states()
    together = module.sender(states, mask, 4)
    for i, tokens in enumerate(mask.sum(-1).tolist()):
        alone = module.sender(states[i : i + 1, :tokens], mask[i : i + 1, :tokens], 4)
        assert torch.allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize(("tokens", "size"), [(1, 2), (4, 2), (5, 4), (8, 4), (400, 4)])
def test_the_size_follows_from_the_length(tokens: int, size: int) -> None:
    shape = reader_card().shape
    assert isinstance(shape, ReaderShape) and shape.size_for(tokens) == size


@pytest.mark.parametrize("where", ["receiver", "sender"])
def test_two_halves_compute_what_the_whole_computes(tmp_path: Path, where: str) -> None:
    changes: dict[str, Any] = {} if where == "receiver" else {"where": "sender", "additions": []}
    module = small_reader(**changes)
    card = store.save(tmp_path, reader_card(**changes), module)
    assert store.load(tmp_path).card == card == read_card(tmp_path)
    whole = store.load(tmp_path).module
    sender, receiver = store.load_half(tmp_path, "sender"), store.load_half(tmp_path, "receiver")
    assert isinstance(receiver.module, ReceiverHalf)
    states, mask = some_states()
    if where == "receiver":
        assert isinstance(sender.module, SenderHalf)
        sent = sender.module(states, mask, 2)
    else:
        assert isinstance(sender.module, Reader)
        sent = sender.module.sent(states, mask, 2)
    assert sent.shape == (3, 2, card.identity().width)
    read, added = receiver.module.read(sent.half().float())
    soft, expected = whole(states, mask, 2)
    assert torch.allclose(read[:, 2:4], soft, atol=2e-3)
    assert torch.equal(read[0, :2], receiver.module.before)
    assert torch.equal(read[1, 4:], receiver.module.after)
    if expected is None:
        assert added is None
    else:
        assert added is not None and torch.allclose(added, expected, atol=1e-5)


def test_int8_rows_are_close_and_half_as_large(tmp_path: Path) -> None:
    module = small_reader(hidden=64, heads=4, down=64)
    card = reader_card(hidden=64, heads=4, down=64)
    halves = store.save(tmp_path / "halves", card, module)
    rows = store.save(tmp_path / "rows", card, module, int8=True)
    assert halves.weights_sha256 != rows.weights_sha256
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("halves", "rows")]
    assert sizes[1] < 0.65 * sizes[0]
    found = store.load(tmp_path / "rows").module.state_dict()
    for key, value in module.state_dict().items():
        largest = value.abs().amax(-1, keepdim=True) if value.ndim else value.abs()
        assert ((found[key] - value).abs() <= largest * 6e-3 + 1e-6).all(), key
    half = store.load_half(tmp_path / "rows", "receiver").module
    assert torch.equal(half.state_dict()["up"], found["receiver.up"])


def test_int8_needs_its_scales_and_a_matrix(tmp_path: Path) -> None:
    store.save(tmp_path, reader_card(), small_reader(), int8=True)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for change in (
        {"receiver.up.scale": None},
        {"receiver.up.scale": torch.zeros(3).half()},
        {"receiver.alpha": torch.ones((), dtype=torch.int8)},
        {"sender.extra.scale": torch.zeros(3).half()},
    ):
        found = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(found, tmp_path / WEIGHTS_FILE)
        reseal(tmp_path)
        assert "tensors" in refused(tmp_path, store.verify) or "I8" in refused(tmp_path)
    bad = tensors | {"receiver.up.scale": tensors["receiver.up.scale"] * float("nan")}
    save_file(bad, tmp_path / WEIGHTS_FILE)
    reseal(tmp_path)
    assert "receiver.up is not finite" in refused(tmp_path)


def test_the_identity_says_what_travels() -> None:
    found = reader_card().identity()
    assert (found.soft_tokens, found.sizes, found.width, found.receiver_half) == (4, (2, 4), 28, 1)
    assert found.layer == 3 and {FREE_TEXT, "any"} <= set(found.prompts)
    soft = reader_card(where="sender", additions=[]).identity()
    assert (soft.width, soft.receiver_half) == (10, True)
    assert not reader_card(where="sender", additions=[], prompt=0).identity().receiver_half


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": [1, 3]}, "begin with 0"),
        ({"layers": [0, 3, 2]}, "rising order"),
        ({"sizes": [4, 4]}, "rising order"),
        ({"sizes": [2, 8]}, "must be the last"),
        ({"soft_tokens": 3}, "must be the last"),
        ({"additions": [6]}, "does not have"),
        ({"where": "sender"}, "made at the receiver"),
        ({"question": "Q: {question} {question}"}, "once"),
        ({"architecture": "resampler"}, "section `reader`"),
        ({"reader": None}, "section `reader`"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        reader_card(**changes)
