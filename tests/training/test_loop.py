"""The training loop, on a task that one linear layer can solve."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bridge_shapes import SHAPE

from agentwire.bridge.resampler import Resampler
from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.training.checkpoint import Checkpoint
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import (
    BridgeObjective,
    TrainingTask,
    diversity_loss,
    drop_tokens,
    schedule,
    score,
    soft_logits,
)
from agentwire.training.optimise import Step, learning_rate
from agentwire.training.states import StateCache

CLASSES = 3
Logits = Callable[[torch.Tensor], torch.Tensor]
CPU = torch.device("cpu")


def recipe(**changes: object) -> TrainSpec:
    values = {"steps": 120, "batch_size": 16, "learning_rate": 3e-3, "average": 0.9, "held_out": 16}
    return TrainSpec.model_validate(
        {**values, "hidden": 16, "heads": 2, "evaluate_every": 30, **changes}
    )


def sample_states(n: int, seed: int) -> StateCache:
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


def evaluate(
    module: torch.nn.Module, logits: Logits, cache: StateCache, batch_size: int = 128
) -> tuple[float, float]:
    found = score(soft_logits([module], logits, [cache], batch_size)[0], cache.labels)
    return found.loss, found.accuracy


def train(
    module: Resampler,
    logits: Logits,
    cache: StateCache,
    held_out: StateCache,
    spec: TrainSpec,
    report: Callable[[Evaluation], None],
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Trains one bridge on one task."""
    task = TrainingTask(logits, [cache], [held_out])
    objective = BridgeObjective([module], [task], [spec])
    (done,) = train_many(objective, [spec], lambda evaluations: report(evaluations[0]), checkpoint)
    if isinstance(done, BridgeError):
        raise done
    return done


def alone(module: Resampler, cache: StateCache, spec: TrainSpec) -> BridgeObjective:
    return BridgeObjective(
        [module], [TrainingTask(receiver, [cache], [sample_states(90, 2)])], [spec]
    )


def run(spec: TrainSpec, logits=receiver, seed: int = 0) -> tuple[Trained, list[Evaluation]]:  # type: ignore[no-untyped-def]
    reported: list[Evaluation] = []
    cache = sample_states(200, 1)
    trained = train(fresh(cache, seed), logits, cache, sample_states(90, 2), spec, reported.append)
    return trained, reported


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
    labels = torch.zeros(20, dtype=torch.long)
    batches = schedule(labels, spec, CPU)
    assert batches.shape == (15, 4)
    epochs = batches.flatten().view(3, 20)
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(schedule(labels, spec, CPU), batches)
    assert not torch.equal(schedule(labels, recipe(steps=15, batch_size=4, seed=1), CPU), batches)


def test_a_batch_may_be_larger_than_the_data() -> None:
    batches = schedule(torch.tensor([0, 1, 1]), recipe(steps=2, batch_size=16), CPU)
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


def test_it_learns() -> None:
    trained, reported = run(recipe())
    assert list(trained.history) == reported
    assert [e.step for e in reported] == [30, 60, 90, 120]
    assert reported[-1].train_loss < 0.5 * reported[0].train_loss
    assert trained.best.accuracy > 0.9  # chance is a third
    loss, accuracy = evaluate(trained.module, receiver, sample_states(90, 2))
    assert (loss, accuracy) == pytest.approx((trained.best.loss, trained.best.accuracy))
    assert evaluate(trained.module, receiver, sample_states(90, 3))[1] > 0.85
    assert not trained.module.training


def test_the_same_seed_gives_the_same_weights() -> None:
    spec = recipe(steps=20, dropout=0.1, token_dropout=0.2)
    first, again = run(spec)[0].module.state_dict(), run(spec)[0].module.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = run(recipe(steps=20, dropout=0.1, token_dropout=0.2, seed=1))[0].module.state_dict()
    assert not torch.equal(first["latents"], other["latents"])


def test_the_best_step_is_returned_not_the_last() -> None:
    cache, held = sample_states(200, 1), sample_states(90, 2)
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
    trained, reported = run(recipe(steps=150))
    ties = [e for e in reported if e.accuracy == trained.best.accuracy]
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
    cache = sample_states(20, 1)
    module = fresh(cache)
    spec = recipe(weight_decay=0.3)
    step = Step(alone(module, cache, spec), [spec])
    decayed, spared = step.optimisers[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)] for p in decayed["params"]}
    assert found == {n for n, p in module.named_parameters() if p.ndim == 2} - {"latents"}
    assert len(found) + len(spared["params"]) == len(names)


def test_the_average_follows_the_weights_slowly() -> None:
    cache = sample_states(64, 1)
    module = fresh(cache)
    start = module.project_out.weight.detach().clone()
    spec = recipe(average=0.75, warmup=0.0)
    step = Step(alone(module.train(), cache, spec), [spec])
    step([3e-3], [[torch.arange(16)]])
    now = module.project_out.weight.detach()
    assert not torch.equal(now, start)
    assert torch.allclose(
        step.averages[0].project_out.weight, start + 0.25 * (now - start), atol=1e-7
    )
    assert not step.averages[0].training
    assert torch.isfinite(step.losses).all()


def test_evaluation_does_not_depend_on_its_batches() -> None:
    cache = sample_states(50, 4)
    module = fresh(cache).eval()
    whole = evaluate(module, receiver, cache)
    assert evaluate(module, receiver, cache, batch_size=7) == pytest.approx(whole, abs=1e-5)


# -- several side by side ---------------------------------------------------------------------


def side_by_side(specs: list[TrainSpec]) -> list[Trained]:
    cache, held = sample_states(200, 1), sample_states(90, 2)
    modules = [fresh(cache, spec.seed) for spec in specs]
    task = TrainingTask(receiver, [cache] * len(specs), [held] * len(specs))
    done = train_many(BridgeObjective(modules, [task], specs), specs)
    assert all(isinstance(one, Trained) for one in done)
    return [one for one in done if isinstance(one, Trained)]


def test_a_training_does_not_depend_on_those_beside_it() -> None:
    plain = {"steps": 40, "token_dropout": 0.0, "dropout": 0.0}
    specs = [recipe(**plain), recipe(**plain, seed=1, learning_rate=1e-3)]
    together = side_by_side(specs)
    for spec, mine in zip(specs, together, strict=True):
        single = run(spec, seed=spec.seed)[0]
        assert mine.best.accuracy == pytest.approx(single.best.accuracy, abs=0.02)
        assert mine.best.loss == pytest.approx(single.best.loss, rel=1e-3)


def test_bridges_of_different_m_and_of_several_tasks_train_side_by_side() -> None:
    cache, held = sample_states(120, 1), sample_states(60, 2)
    one_token = dataclasses.replace(SHAPE, soft_tokens=1)
    specs = [recipe(steps=20), recipe(steps=20)]
    modules = [fresh(cache), Resampler(one_token)]

    def reads(turn: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda soft: turn * soft.mean(1)[:, :CLASSES]

    tasks = [TrainingTask(reads(turn), [cache] * 2, [held] * 2) for turn in (1.0, -1.0)]
    done = train_many(BridgeObjective(modules, tasks, specs), specs)
    for one in done:
        assert isinstance(one, Trained)
        # The two tasks ask for opposite answers to the same states, so no bridge can do both.
        apart = [evaluate(one.module, reads(turn), held)[1] for turn in (1.0, -1.0)]
        assert one.best.accuracy == pytest.approx(sum(apart) / 2)


def test_they_need_the_same_number_of_steps() -> None:
    cache = sample_states(40, 1)
    specs = [recipe(steps=10), recipe(steps=20)]
    task = TrainingTask(receiver, [cache] * 2, [cache] * 2)
    with pytest.raises(ValueError, match="same steps"):
        train_many(BridgeObjective([fresh(cache), fresh(cache)], [task], specs), specs)


# -- options ------------------------------------------------------------------------------------


def test_balanced_batches_hold_every_class_as_often() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    spec = recipe(steps=200, batch_size=16, balanced=True)
    share = labels[schedule(labels, spec, CPU)].float().mean()
    assert 0.46 < share < 0.54
    plain = labels[schedule(labels, recipe(steps=200, batch_size=16), CPU)].float().mean()
    assert 0.08 < plain < 0.12
    assert torch.equal(schedule(labels, spec, CPU), schedule(labels, spec, CPU))


def test_orthogonal_soft_tokens_have_no_diversity_loss() -> None:
    orthogonal = torch.eye(4)[None, :3] * 5
    assert diversity_loss(orthogonal, "orthogonality") == pytest.approx(0.0, abs=1e-6)
    same = torch.ones(2, 3, 4)
    assert diversity_loss(same, "orthogonality") == pytest.approx(1.0, abs=1e-6)
    one = torch.randn(2, 1, 4)
    assert diversity_loss(one, "orthogonality") == 0.0


def test_the_entropy_loss_is_lowest_for_a_flat_mean() -> None:
    flat = torch.ones(3, 2, 8)
    peaked = flat.clone()
    peaked[..., 0] = 30.0
    assert diversity_loss(flat, "entropy") == pytest.approx(-1.0, abs=1e-6)
    assert diversity_loss(peaked, "entropy") == pytest.approx(0.0, abs=1e-4)


def test_the_diversity_loss_spreads_the_soft_tokens() -> None:
    cache = sample_states(64, 5)
    states, mask = cache.gather(torch.arange(64), cache.longest)

    def spread(spec: TrainSpec) -> float:
        trained = run(spec)[0]
        with torch.no_grad():
            return float(diversity_loss(trained.module(states, mask), "orthogonality"))

    plain = spread(recipe(steps=60))
    assert spread(recipe(steps=60, diversity=1.0)) < 0.7 * plain


def test_early_stopping_ends_a_training_that_does_not_get_better() -> None:
    def constant(soft: torch.Tensor) -> torch.Tensor:
        return soft.sum(dim=(1, 2), keepdim=False)[:, None] * torch.zeros(1, CLASSES)

    reported = run(recipe(steps=600, patience=2), logits=constant)[1]
    assert [e.step for e in reported] == [30, 60, 90]


# -- crashes ------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_killed_training_resumes(tmp_path: Path, dropout: float) -> None:
    spec = recipe(steps=120, token_dropout=dropout)
    whole = run(spec)[0]
    cache, held = sample_states(200, 1), sample_states(90, 2)
    saved = Checkpoint(tmp_path / "training.safetensors", "this one")

    def dies(now: Evaluation) -> None:
        if now.step == 90:  # the checkpoint is of step 60
            raise Killed

    with pytest.raises(Killed):
        train(fresh(cache), receiver, cache, held, spec, dies, saved)
    assert saved.path.is_file()
    reported: list[Evaluation] = []
    again = train(fresh(cache, seed=9), receiver, cache, held, spec, reported.append, saved)
    assert [e.step for e in reported] == [90, 120]
    assert [e.step for e in again.history] == [30, 60, 90, 120]
    assert again.best.loss == pytest.approx(whole.best.loss)
    weights = whole.module.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in again.module.state_dict().items())
    # The result is not written anywhere yet: a crash now costs nothing either.
    assert (
        train(fresh(cache), receiver, cache, held, spec, reported.append, saved).best == again.best
    )
    saved.remove()
    assert not saved.path.exists()


def test_the_checkpoint_of_another_training_is_ignored(tmp_path: Path) -> None:
    cache, held = sample_states(100, 1), sample_states(50, 2)
    path = tmp_path / "training.safetensors"

    def dies(now: Evaluation) -> None:
        if now.step == 60:
            raise Killed

    with pytest.raises(Killed):
        train(fresh(cache), receiver, cache, held, recipe(), dies, Checkpoint(path, "one"))
    assert Checkpoint(path, "two").load(CPU) is None
    assert Checkpoint(path, "one").load(CPU) is not None
    path.write_bytes(path.read_bytes()[:100])
    assert Checkpoint(path, "one").load(CPU) is None
    path.write_bytes(b"")
    assert Checkpoint(path, "one").load(CPU) is None


def test_a_loss_that_becomes_nan_is_rolled_back(tmp_path: Path) -> None:
    cache, held = sample_states(200, 1), sample_states(90, 2)
    calls = 0

    def breaks_once(soft: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            calls += 1
            if calls == 45:  # between the evaluations at 30 and 60
                return receiver(soft) * math.nan
        return receiver(soft)

    trained = train(fresh(cache), breaks_once, cache, held, recipe(), lambda e: None)
    assert [e.step for e in trained.history] == [30, 90, 120]
    assert trained.best.accuracy > 0.8
    assert all(torch.isfinite(v).all() for v in trained.module.state_dict().values())


def test_a_loss_that_stays_nan_fails_without_affecting_others() -> None:
    cache, held = sample_states(200, 1), sample_states(90, 2)
    specs = [recipe(steps=180), recipe(steps=180)]
    calls = 0

    def breaks_the_second(soft: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        logits = receiver(soft)
        if torch.is_inference_mode_enabled():
            return logits
        calls += 1
        if calls <= 40:
            return logits
        return torch.cat([logits[:16], logits[16:] * math.nan])

    task = TrainingTask(breaks_the_second, [cache] * 2, [held] * 2)
    modules = [fresh(cache), fresh(cache, 1)]
    first, second = train_many(BridgeObjective(modules, [task], specs), specs)
    assert isinstance(first, Trained) and first.best.accuracy > 0.9
    assert isinstance(second, BridgeError) and "4th time" in second.message
