"""What is read off soft tokens: ranks, cosines, nearest rows, attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bridge_shapes import SHAPE, small_module

from agentwire.bridge.resampler import Block
from agentwire.evaluation.inspect import payloads as inspection
from agentwire.evaluation.inspect import tsne


def test_effective_rank_counts_directions() -> None:
    assert inspection.effective_rank(torch.eye(4)) == pytest.approx(4)
    assert inspection.effective_rank(torch.ones(5, 3)) == pytest.approx(1)
    assert inspection.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    )
    assert inspection.effective_rank(torch.zeros(3, 3)) == 0


def test_pairwise_cosine_is_a_mean_over_texts() -> None:
    alike = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])
    across = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    cosines = inspection.pairwise_cosine(torch.cat([alike, across]))
    assert cosines.tolist() == [[1.0, 0.5], [0.5, 1.0]]
    assert inspection.off_diagonal_mean(cosines) == pytest.approx(0.5)
    assert inspection.off_diagonal_mean(torch.ones(1, 1)) is None


def test_nearest_is_that_of_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    table, vectors = torch.randn(50, 6), torch.randn(3, 6)
    monkeypatch.setattr(inspection, "CHUNK", 7)
    cosines, rows = inspection.nearest(vectors, table, 4)
    unit = torch.nn.functional.normalize
    wanted = (unit(vectors, dim=-1) @ unit(table, dim=-1).T).topk(4, dim=1)
    assert rows.tolist() == wanted.indices.tolist()
    assert torch.allclose(cosines, wanted.values)


def test_a_vocabulary_smaller_than_k_gives_what_it_has() -> None:
    cosines, _ = inspection.nearest(torch.randn(2, 3), torch.randn(4, 3), 9)
    assert cosines.shape == (2, 4)


def test_a_random_direction_is_the_same_for_the_same_seed() -> None:
    table = torch.randn(100, 8)
    assert inspection.random_cosine(table) == inspection.random_cosine(table)
    assert 0 < inspection.random_cosine(table) < 1


@torch.no_grad()
def test_attention_is_what_the_last_block_mixes_with() -> None:
    module = small_module()
    torch.manual_seed(1)
    states, mask = torch.randn(2, 5, SHAPE.sender_width), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    weights = inspection.attention(module, states, mask)
    assert weights.shape == (2, SHAPE.soft_tokens, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, SHAPE.soft_tokens))
    assert not weights[1, :, 3:].any()
    # With one head the mean is that head's: the weighted values must be the block's own output.
    last = module.blocks[-1]
    assert isinstance(last, Block)
    last.heads = 1
    weights = inspection.attention(module, states, mask)
    inner = module.project_in(module.norm_in(module.standardise(states)))
    latents = module.blocks[0](module.latents.expand(2, -1, -1), inner, mask)
    value = last.key_value(last.norm_states(inner)).chunk(2, dim=-1)[1]
    assert torch.allclose(last.out(weights @ value), last.attend(latents, inner, mask), atol=1e-5)


def test_a_map_keeps_classes_apart_and_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="`make test` installs sklearn")
    pytest.importorskip("matplotlib", reason="`make test` installs matplotlib")
    generator = np.random.default_rng(0)
    centres = np.repeat(np.eye(2, 8) * 10, 15, axis=0)
    payloads = (centres + generator.normal(size=(30, 8))).astype(np.float32)
    points = tsne.project(payloads)
    assert points.shape == (30, 2)
    first, second = points[:15], points[15:]
    apart = np.linalg.norm(first.mean(0) - second.mean(0))
    assert apart > first.std() and apart > second.std()
    file = tmp_path / "map.png"
    tsne.draw(points, [0] * 15 + [1] * 15, ["bad", "good"], "two classes", file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_too_few_payloads_make_no_map() -> None:
    pytest.importorskip("sklearn", reason="`make test` installs sklearn")
    with pytest.raises(ValueError, match="at least 5 payloads"):
        tsne.project(np.zeros((4, 8), np.float32))
