"""Cached states: the sender's own, row by row, without padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import RAGGED, spec

from agentwire.model.transformers import TransformersBackend
from agentwire.training.states import HALF_MAX, StateCache, cache_layers

TEXTS = [*RAGGED, *(f"review {n} " * n for n in range(1, 8))]
LABELS = [i % 2 for i in range(len(TEXTS))]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gemma"])
def sender(request: pytest.FixtureRequest) -> TransformersBackend:
    folder: Path = request.getfixturevalue(request.param)
    return TransformersBackend.load(spec("sender", folder), lambda stage, fraction: None)


def cached(
    sender: TransformersBackend, layer: int = 2, max_tokens: int = 40, batch_size: int = 64
) -> StateCache:
    return cache_layers(
        sender, TEXTS, LABELS, layers=[layer], max_tokens=max_tokens, batch_size=batch_size
    )[layer]


def test_each_text_has_the_states_that_it_has_alone(sender: TransformersBackend) -> None:
    cache = cached(sender, batch_size=4)
    assert len(cache) == len(TEXTS)
    assert cache.flat.dtype == torch.float16
    assert cache.labels.tolist() == LABELS
    for i, text in enumerate(TEXTS):
        ids, mask = sender.tokens([text])
        whole = sender.model(input_ids=ids, output_hidden_states=True).hidden_states[2]
        expected = whole[0, 1:][mask[0]][:40]
        begin, length = int(cache.offsets[i]), int(cache.lengths[i])
        assert length == expected.shape[0]
        found = cache.flat[begin : begin + length].float()
        assert torch.allclose(found, expected.clamp(-HALF_MAX, HALF_MAX), rtol=2e-3, atol=2e-3)


def test_several_layers_are_read_in_one_pass(
    sender: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {layer: cached(sender, layer=layer) for layer in (1, 2, 3)}

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in sender.model.modules())

    before, passes = hooks(), list[int]()
    states = sender.states
    monkeypatch.setattr(
        sender, "states", lambda short, ids: passes.append(len(short.layers)) or states(short, ids)
    )
    found = cache_layers(sender, TEXTS, LABELS, layers=[2, 3, 1], max_tokens=40)
    assert passes == [3]
    assert list(found) == [2, 3, 1]
    for layer, cache in found.items():
        assert torch.equal(cache.flat, alone[layer].flat)
        assert torch.equal(cache.offsets, alone[layer].offsets)
    assert hooks() == before  # none is left behind


def test_long_texts_are_cut(sender: TransformersBackend) -> None:
    cache = cached(sender, max_tokens=8)
    assert cache.longest == 8
    order = cache.offsets.argsort()  # the texts cover ``flat``, each token once
    lengths = cache.lengths[order]
    assert torch.equal(cache.offsets[order], lengths.cumsum(0) - lengths)
    assert cache.flat.shape[0] == int(cache.lengths.sum())


def test_progress_ends_at_one(sender: TransformersBackend) -> None:
    fractions: list[float] = []
    cache_layers(
        sender, TEXTS, LABELS, layers=[1], max_tokens=8, batch_size=4, progress=fractions.append
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_states_beyond_fp16_stay_finite(
    sender: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = sender.states

    def huge(short: object, ids: torch.Tensor) -> torch.Tensor:
        return states(short, ids) * 1e6

    monkeypatch.setattr(sender, "states", huge)
    cache = cached(sender)
    assert torch.isfinite(cache.flat).all()
    assert all(torch.isfinite(part).all() for part in cache.statistics())


def made(*rows: list[list[float]]) -> StateCache:
    lengths = torch.tensor([len(row) for row in rows])
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.float16)
    return StateCache(flat, lengths.cumsum(0) - lengths, lengths, torch.zeros(len(rows)))


def test_gathered_rows_are_padded_and_masked() -> None:
    cache = made([[1, 1], [2, 2]], [[3, 3]], [[4, 4], [5, 5], [6, 6]])
    states, mask = cache.gather(torch.tensor([2, 0, 1]), 3)
    assert states.shape == (3, 3, 2)
    assert mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert states[..., 0][mask].tolist() == [4, 5, 6, 1, 2, 3]
    short, kept = cache.gather(torch.tensor([2]), 2)
    assert short[0, :, 0].tolist() == [4, 5]
    assert kept.all()


def test_statistics_are_those_of_all_tokens() -> None:
    torch.manual_seed(0)
    rows = [(torch.randn(5, 4) * 3 + 7).tolist() for _ in range(30)]
    cache = made(*rows)
    mean, std = cache.statistics()
    flat = cache.flat.double()
    assert torch.allclose(mean, flat.mean(0).float())
    assert torch.allclose(std, flat.std(0, unbiased=False).float(), rtol=1e-4)


def test_a_dead_feature_is_not_blown_up() -> None:
    cache = made(*[[[float(i), 5.0, -float(i)]] for i in range(9)])
    std = cache.statistics()[1]
    assert std[1] == pytest.approx(1e-3 * float(std[0]), rel=1e-3)


def test_statistics_of_some_of_the_texts_are_theirs_alone() -> None:
    cache = made([[1.0, 5.0]], [[2.0, 0.0], [6.0, 4.0]], [[100.0, -100.0]])
    part = cache.part(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1]))
    assert part.labels.tolist() == [0, 1, 1]
    alone = made([[2.0, 0.0], [6.0, 4.0]], [[1.0, 5.0]], [[2.0, 0.0], [6.0, 4.0]])
    for value, expected in zip(part.statistics(), alone.statistics(), strict=True):
        torch.testing.assert_close(value, expected)
