"""The bridge as a function: shapes, masks, scale, size."""

from __future__ import annotations

import pytest
import torch
from bridge_shapes import SHAPE, small_module

from agentwire.bridge.resampler import CLAMP_SIGMAS, Resampler
from agentwire.bridge.shape import BridgeShape


def batch(*lengths: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    states = torch.randn(len(lengths), max(lengths), SHAPE.sender_width) * 3
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return states, mask


@pytest.mark.parametrize("lengths", [(1,), (5, 2), (3, 9, 1, 9)])
def test_any_text_becomes_m_soft_tokens_of_the_receivers_width(lengths: tuple[int, ...]) -> None:
    soft = small_module()(*batch(*lengths))
    assert soft.shape == (len(lengths), SHAPE.soft_tokens, SHAPE.width)
    assert soft.dtype == torch.float32


def test_each_soft_token_has_the_receivers_rms() -> None:
    module = small_module()
    for alpha in (0.02, 2.0, 40.0):
        module.alpha.fill_(alpha)
        rms = module(*batch(7, 3, 1)).pow(2).mean(-1).sqrt()
        assert torch.allclose(rms, torch.full_like(rms, alpha), rtol=1e-5)


def test_what_is_masked_has_no_influence() -> None:
    module, (states, mask) = small_module(), batch(6, 2)
    before = module(states, mask)
    states[1, 2:] = 1e30
    assert torch.equal(module(states, mask), before)
    hole = mask.clone()
    hole[0, 3] = False
    with_hole = module(states, hole)
    states[0, 3] = -1e30
    assert torch.equal(module(states, hole), with_hole)
    assert not torch.allclose(with_hole[0], before[0], atol=1e-3)


def test_padding_has_no_influence() -> None:
    module, (states, mask) = small_module(), batch(4, 2)
    wide = torch.cat([states, torch.full((2, 9, SHAPE.sender_width), 7.0)], dim=1)
    padded = torch.cat([mask, torch.zeros(2, 9, dtype=torch.bool)], dim=1)
    assert torch.allclose(module(wide, padded), module(states, mask), atol=1e-6)


def test_a_row_does_not_depend_on_its_batch() -> None:
    module, (states, mask) = small_module(), batch(9, 1, 4, 7)
    together = module(states, mask)
    for i, length in enumerate((9, 1, 4, 7)):
        alone = module(states[i : i + 1, :length], mask[i : i + 1, :length])
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_the_order_of_states_does_not_matter() -> None:
    # No positions of its own: the sender's states carry them.
    module, (states, mask) = small_module(), batch(8)
    assert torch.allclose(module(states.flip(1), mask), module(states, mask), atol=1e-5)


def test_outliers_are_clamped() -> None:
    module, (states, mask) = small_module(), batch(3)
    edge = module.mean[4] + CLAMP_SIGMAS * module.std[4]
    states[0, 1, 4] = edge
    at_edge = module(states, mask)
    for outlier in (float(edge) * 1e4 + 1, float("inf")):
        states[0, 1, 4] = outlier
        assert torch.allclose(module(states, mask), at_edge, atol=1e-6)
    assert module.standardise(states).abs().max() <= CLAMP_SIGMAS


def test_states_of_half_precision_are_read_in_fp32() -> None:
    module, (states, mask) = small_module(), batch(5)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = states.to(dtype)
        assert torch.equal(module(rounded, mask), module(rounded.float(), mask))


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (BridgeShape(4096, 4096, 8, hidden=512, blocks=2), 10_514_944),
        (BridgeShape(576, 640, 8, hidden=256, blocks=2), 1_894_400),
    ],
)
def test_parameter_counts_of_the_two_shapes_in_use(shape: BridgeShape, parameters: int) -> None:
    with torch.device("meta"):
        module = Resampler(shape)
    assert module.count_parameters() == parameters


def test_statistics_and_alpha_are_stored_but_not_trained() -> None:
    module = small_module()
    assert {"mean", "std", "alpha"} <= set(module.state_dict())
    assert not {"mean", "std", "alpha"} & {name for name, _ in module.named_parameters()}
