"""The training loop, on a problem that one linear layer could solve: seconds on a CPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from bridge_shapes import SHAPE

from agentwire.bridge.resampler import Resampler
from agentwire.bridge.states import StateCache
from agentwire.bridge.trainer import (
    Evaluation,
    Step,
    Trained,
    drop_tokens,
    evaluate,
    learning_rate,
    schedule,
    train,
)
from agentwire.errors import BridgeError
from agentwire.scenario.schema import TrainSpec

CLASSES = 3
CPU = torch.device("cpu")


def recipe(**changes: object) -> TrainSpec:
    values = {"steps": 120, "batch_size": 16, "learning_rate": 3e-3, "average": 0.9, "held_out": 16}
    return TrainSpec.model_validate(
        {**values, "hidden": 16, "heads": 2, "evaluate_every": 30, **changes}
    )


def problem(n: int, seed: int) -> StateCache:
    """Texts of 2 to 6 tokens; one token of each carries the direction of its class."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(
        CLASSES, SHAPE.sender_width, generator=torch.Generator().manual_seed(0)
    )
    lengths = torch.randint(2, 7, (n,), generator=generator)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    flat = torch.randn(int(lengths.sum()), SHAPE.sender_width, generator=generator) * 0.5
    offsets = lengths.cumsum(0) - lengths
    flat[offsets + lengths // 2] += 3 * directions[labels]
    return StateCache(flat.half(), offsets, lengths, labels)


def receiver(soft: torch.Tensor) -> torch.Tensor:
    """A frozen stand-in: a fixed nonlinear reading of the soft tokens."""
    torch_rng = torch.Generator().manual_seed(42)
    first = torch.randn(SHAPE.soft_tokens * SHAPE.width, 32, generator=torch_rng) * 0.3
    second = torch.randn(32, CLASSES, generator=torch_rng) * 0.5
    return torch.tanh(soft.flatten(1) @ first) @ second


def fresh(cache: StateCache, seed: int = 0, dropout: float = 0.0) -> Resampler:
    torch.manual_seed(seed)
    module = Resampler(SHAPE, dropout=dropout)
    mean, std = cache.statistics()
    module.mean.copy_(mean)
    module.std.copy_(std)
    return module


def run(spec: TrainSpec, logits=receiver, seed: int = 0) -> tuple[Trained, list[Evaluation]]:  # type: ignore[no-untyped-def]
    told: list[Evaluation] = []
    cache = problem(200, 1)
    trained = train(fresh(cache, seed), logits, cache, problem(90, 2), spec, told.append)
    return trained, told


def test_the_rate_warms_up_and_decays_to_a_hundredth() -> None:
    spec = recipe(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(step, spec) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.01 + 0.99 / 2)
    assert 0.01 < rates[-1] < 0.011


def test_a_rate_without_warm_up_and_of_one_step() -> None:
    assert learning_rate(0, recipe(warmup=0.0, learning_rate=1.0)) == 1.0
    assert learning_rate(0, recipe(steps=1, learning_rate=0.5)) == 0.5


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    spec = recipe(steps=15, batch_size=4)
    batches = schedule(20, spec, CPU)
    assert batches.shape == (15, 4)
    epochs = batches.flatten().view(3, 20)
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(schedule(20, spec, CPU), batches)
    assert not torch.equal(schedule(20, recipe(steps=15, batch_size=4, seed=1), CPU), batches)


def test_a_batch_may_be_larger_than_the_data() -> None:
    batches = schedule(3, recipe(steps=2, batch_size=16), CPU)
    assert batches.shape == (2, 16)
    counts = torch.bincount(batches.flatten())
    assert counts.max() - counts.min() <= 1


def test_dropped_tokens_are_a_random_part_of_the_text() -> None:
    torch.manual_seed(0)
    mask = torch.arange(50)[None, :] < torch.tensor([50, 1, 20] * 100)[:, None]
    kept = drop_tokens(mask, 0.3)
    assert kept[:, 0].all()
    assert not (kept & ~mask).any()
    share = kept[mask].float().mean()
    assert 0.66 < share < 0.74
    assert torch.equal(drop_tokens(mask, 0.0), mask)
    assert drop_tokens(mask, 0.99).any(dim=1).all()


def test_it_learns_and_the_held_out_rows_say_so() -> None:
    trained, told = run(recipe())
    assert list(trained.history) == told
    assert [e.step for e in told] == [30, 60, 90, 120]
    assert told[-1].train_loss < 0.5 * told[0].train_loss
    assert trained.best.accuracy > 0.9  # chance is a third
    loss, accuracy = evaluate(trained.module, receiver, problem(90, 2))
    assert (loss, accuracy) == pytest.approx((trained.best.loss, trained.best.accuracy))
    assert evaluate(trained.module, receiver, problem(90, 3))[1] > 0.85
    assert not trained.module.training
    assert trained.seconds >= told[-1].seconds > 0


def test_the_same_seed_gives_the_same_weights() -> None:
    spec = recipe(steps=20, dropout=0.1, token_dropout=0.2)
    first, again = run(spec)[0].module.state_dict(), run(spec)[0].module.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = run(recipe(steps=20, dropout=0.1, token_dropout=0.2, seed=1))[0].module.state_dict()
    assert not torch.equal(first["latents"], other["latents"])


def test_the_best_step_is_returned_not_the_last() -> None:
    cache, held = problem(200, 1), problem(90, 2)
    calls = 0

    def breaks(soft: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        if torch.is_inference_mode_enabled():  # the evaluations, one batch each
            calls += 1
            if calls == 3:
                return -receiver(soft)
        return receiver(soft)

    trained = train(fresh(cache), breaks, cache, held, recipe(steps=90), lambda e: None)
    first, second, third = trained.history
    assert third.accuracy < second.accuracy
    assert trained.best == max((first, second), key=lambda e: (e.accuracy, -e.loss))
    assert evaluate(trained.module, receiver, held)[0] == pytest.approx(trained.best.loss)


def test_of_equal_accuracies_the_lower_loss_wins() -> None:
    trained, told = run(recipe(steps=150))
    ties = [e for e in told if e.accuracy == trained.best.accuracy]
    assert trained.best.loss == min(e.loss for e in ties)


def test_steps_that_evaluation_does_not_divide() -> None:
    assert [e.step for e in run(recipe(steps=50))[1]] == [30, 50]
    assert [e.step for e in run(recipe(steps=1))[1]] == [1]


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    def broken(soft: torch.Tensor) -> torch.Tensor:
        return receiver(soft) * math.nan

    with pytest.raises(BridgeError, match="not finite after 30 steps") as error:
        run(recipe(), logits=broken)
    assert error.value.hint and "learning_rate" in error.value.hint


def test_weight_decay_spares_norms_biases_and_latents() -> None:
    cache = problem(20, 1)
    module = fresh(cache)
    step = Step(module, receiver, cache, recipe(weight_decay=0.3))
    decayed, spared = step.optimiser.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)] for p in decayed["params"]}
    assert found == {n for n, p in module.named_parameters() if p.ndim == 2} - {"latents"}
    assert len(found) + len(spared["params"]) == len(names)


def test_the_average_follows_the_weights_slowly() -> None:
    cache = problem(64, 1)
    module = fresh(cache)
    start = module.project_out.weight.detach().clone()
    step = Step(module.train(), receiver, cache, recipe(average=0.75, warmup=0.0))
    step(0, torch.arange(16))
    now = module.project_out.weight.detach()
    assert not torch.equal(now, start)
    assert torch.allclose(step.average.project_out.weight, start + 0.25 * (now - start), atol=1e-7)
    assert not step.average.training
    assert torch.isfinite(step.loss)


def test_evaluation_does_not_depend_on_its_batches() -> None:
    cache = problem(50, 4)
    module = fresh(cache).eval()
    whole = evaluate(module, receiver, cache)
    assert evaluate(module, receiver, cache, batch_size=7) == pytest.approx(whole, abs=1e-5)
