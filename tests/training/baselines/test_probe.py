"""Probes on made-up states whose classes are known to be readable, or not."""

from __future__ import annotations

import pytest
import torch

from agentwire.spec.scenario import TrainSpec
from agentwire.training.baselines.probe import (
    AttentionProbe,
    Scaler,
    choose_logistic,
    fit_logistic,
    mean_pooled,
    probe_logits,
    probe_objective,
)
from agentwire.training.loop import Trained, train_many
from agentwire.training.states import StateCache

WIDTH, CLASSES = 12, 3


def states(n: int, seed: int, *, strength: float = 1.5, cancel: bool = False) -> StateCache:
    """Texts of 3 to 7 tokens; one token points to the class, and with ``cancel`` another one away,
    so that the mean of all tokens says nothing."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    lengths = torch.randint(3, 8, (n,), generator=generator)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    flat = 0.2 * torch.randn(int(lengths.sum()), WIDTH, generator=generator)
    offsets = lengths.cumsum(0) - lengths
    flat[offsets + 1] += strength * directions[labels]
    if cancel:
        flat[offsets + 2] -= strength * directions[labels]
        flat[offsets + 1, 0] = 4.0  # what attention can find it by
    return StateCache(flat.half(), offsets, lengths, labels)


def accuracy(logits: torch.Tensor, cache: StateCache) -> float:
    return float((logits.argmax(-1) == cache.labels).double().mean())


def test_pooling_is_the_mean_of_standardised_tokens_whatever_the_batch() -> None:
    cache = states(40, 1)
    scaler = Scaler.of(cache)
    pooled = mean_pooled(cache, scaler)
    begin, length = int(cache.offsets[7]), int(cache.lengths[7])
    wanted = scaler(cache.flat[begin : begin + length]).mean(dim=0)
    assert torch.allclose(pooled[7], wanted, atol=1e-5)
    assert pooled.shape == (40, WIDTH)


def test_outliers_are_clamped_as_in_the_bridge() -> None:
    cache = states(40, 1)
    scaler = Scaler.of(cache)
    assert float(scaler(torch.full((1, WIDTH), 1e4)).max()) == 8.0


def test_the_mean_probe_reads_what_is_in_the_mean() -> None:
    train, test = states(400, 1), states(200, 2)
    scaler = Scaler.of(train)
    probe, notes = choose_logistic(
        mean_pooled(train, scaler), train.labels, mean_pooled(test, scaler), test.labels, CLASSES
    )
    assert notes["held_out_accuracy"] > 0.9
    assert notes["held_out_accuracy"] == accuracy(probe(mean_pooled(test, scaler)), test)


def test_regularisation_shrinks_the_weights() -> None:
    train = states(200, 1)
    features = mean_pooled(train, Scaler.of(train))
    loose, tight = (fit_logistic(features, train.labels, CLASSES, l2) for l2 in (1e-6, 1.0))
    assert float(tight.weight.norm()) < 0.2 * float(loose.weight.norm())


def trained(train: StateCache, held: StateCache, settings: list[float]) -> list[Trained]:
    scaler = Scaler.of(train)
    recipes = [
        TrainSpec(steps=300, batch_size=32, learning_rate=rate, average=0.9, evaluate_every=100,
                  clip=10.0)
        for rate in settings
    ]  # fmt: skip
    modules = []
    for seed, _ in enumerate(settings):
        torch.manual_seed(seed)
        modules.append(AttentionProbe(scaler, CLASSES, heads=2, dropout=0.0))
    done = train_many(probe_objective(modules, train, held), recipes)
    assert all(isinstance(one, Trained) for one in done)
    return [one for one in done if isinstance(one, Trained)]


def test_attention_finds_what_the_mean_has_lost() -> None:
    train, held, test = (states(n, s, cancel=True) for n, s in ((600, 1), (100, 2), (200, 3)))
    scaler = Scaler.of(train)
    mean, _ = choose_logistic(
        mean_pooled(train, scaler), train.labels, mean_pooled(held, scaler), held.labels, CLASSES
    )
    attention = trained(train, held, [1e-2, 1e-2])
    lost = accuracy(mean(mean_pooled(test, scaler)), test)
    for one in attention:
        assert accuracy(probe_logits(one.module, test), test) > max(0.9, lost + 0.1)


def test_padding_is_not_attended_to() -> None:
    cache = states(20, 1)
    torch.manual_seed(0)
    probe = AttentionProbe(Scaler.of(cache), CLASSES, heads=2).eval()
    rows = torch.arange(20)
    narrow = probe(*cache.gather(rows, cache.longest))
    wide = probe(*cache.gather(rows, cache.longest + 9))
    assert torch.allclose(narrow, wide, atol=1e-5)
    assert torch.allclose(probe_logits(probe, cache), narrow, atol=1e-5)
    single = torch.cat([probe(*cache.gather(rows[i : i + 1], 7)) for i in range(20)])
    assert torch.allclose(single, narrow, atol=1e-5)


def test_states_without_the_class_stay_at_chance() -> None:
    train, test = states(400, 1, strength=0.0), states(400, 2, strength=0.0)
    scaler = Scaler.of(train)
    _, notes = choose_logistic(
        mean_pooled(train, scaler), train.labels, mean_pooled(test, scaler), test.labels, CLASSES
    )
    assert notes["held_out_accuracy"] == pytest.approx(1 / 3, abs=0.09)
