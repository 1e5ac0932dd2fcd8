"""A second bridge architecture, as another package would add it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from bridge_shapes import SHAPE, small_card
from torch import Tensor, nn

from agentwire.bridge import store
from agentwire.bridge.architectures import ARCHITECTURES
from agentwire.bridge.card import CARD_FILE, read_card, write_card
from agentwire.bridge.module import BridgeModule
from agentwire.bridge.shape import BridgeShape
from agentwire.errors import BridgeError

BEFORE = sorted(
    path
    for path in (Path(__file__).parents[2] / "bridges").glob("*/card.yaml")
    if not path.parent.name.endswith("--reader")
)


class MeanBridge(BridgeModule):
    """Every soft token is a projection of the mean state."""

    architecture: ClassVar[str] = "mean"

    def __init__(self, shape: BridgeShape, *, dropout: float = 0.0) -> None:
        super().__init__(shape, dropout=dropout)
        self.project = nn.Linear(shape.sender_width, shape.soft_tokens * shape.width)

    def calibrate(self, mean: Tensor, std: Tensor, alpha: float) -> None:
        self.project.bias.data.fill_(alpha)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        soft: Tensor = self.project(mean)
        return soft.view(len(states), self.shape.soft_tokens, self.shape.width)


@pytest.fixture
def mean_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES._loaded, "mean", MeanBridge)


@pytest.mark.usefixtures("mean_architecture")
def test_it_is_saved_verified_and_loaded_like_the_built_in_one(tmp_path: Path) -> None:
    module = MeanBridge(SHAPE)
    module.calibrate(torch.zeros(12), torch.ones(12), 0.5)
    card = store.save(tmp_path, small_card(architecture="mean"), module)
    assert "architecture: mean" in (tmp_path / CARD_FILE).read_text()
    assert store.verify(tmp_path) == card
    loaded = store.load(tmp_path)
    assert isinstance(loaded.module, MeanBridge)
    states, mask = torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    assert loaded.module(states, mask).shape == (2, 4, 10)
    assert module.count_parameters() == 12 * 40 + 40


@pytest.mark.usefixtures("mean_architecture")
def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    store.save(tmp_path, small_card(architecture="mean"), MeanBridge(SHAPE))
    write_card(tmp_path, read_card(tmp_path).model_copy(update={"architecture": "resampler"}))
    with pytest.raises(BridgeError, match="does not have the tensors"):
        store.verify(tmp_path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    write_card(tmp_path, small_card().model_copy(update={"architecture": "mirror"}))
    with pytest.raises(BridgeError, match="architecture: Input should be 'resampler' or 'reader'"):
        read_card(tmp_path)


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.parent.name)
def test_cards_written_before_architectures_stay_as_they_are(path: Path, tmp_path: Path) -> None:
    card = read_card(path.parent)
    assert card.architecture == "resampler"
    write_card(tmp_path, card)
    # Word for word: emitters fold long lines at different places.
    assert (tmp_path / CARD_FILE).read_text().split() == path.read_text().split()
