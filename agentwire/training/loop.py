"""The training loop: both language models are frozen, only small modules beside them learn.

Loss: cross-entropy over the task's label words at the receiver's first answer position, the same
quantity that scoring uses. The step is chosen on held-out training rows. Several trainings (seeds,
layers, rates, Ms) run side by side in one loop and share each pass through the frozen receiver.

A loss that is not finite does not end the work: the training goes back to its last good evaluation
and on at half the rate, up to three times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from agentwire.bridge.module import BridgeModule
from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.training.checkpoint import Checkpoint, Progressed
from agentwire.training.objective import (
    BridgeObjective,
    LogitsFromSoft,
    Part,
    Problem,
    Score,
    held_out_scores,
)
from agentwire.training.optimise import Step, learning_rate, schedule
from agentwire.training.states import StateCache

ROLLBACKS = 3
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out figures at one step; ``parts``: the accuracy of each task, if there are several."""

    step: int
    loss: float
    train_loss: float
    accuracy: float
    seconds: float
    parts: tuple[float, ...] = ()

    @property
    def rank(self) -> tuple[float, float]:
        """The better, the higher: accuracy, and of equal ones the lower loss."""
        return self.accuracy, -self.loss


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained module and its history; ``best`` is the evaluation it was chosen for."""

    module: nn.Module
    best: Evaluation
    history: tuple[Evaluation, ...]
    seconds: float


@dataclass(slots=True)
class _Member:
    """The state of one training."""

    recipe: TrainSpec
    history: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    good: dict[str, Tensor] = field(default_factory=dict)
    rollbacks: int = 0
    scale: float = 1.0
    failure: BridgeError | None = None

    def stale(self) -> bool:
        """Whether early stopping ends it."""
        patience = self.recipe.patience
        if self.failure is not None:
            return True
        if not patience or self.best is None:
            return False
        return sum(e.step > self.best.step for e in self.history) >= patience


def train_many(
    problem: Problem,
    recipes: Sequence[TrainSpec],
    report: Callable[[int, Evaluation], None] = lambda member, now: None,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
    stepped: Callable[[int], None] = lambda number: None,
) -> list[Trained | BridgeError]:
    """Trains every member of ``problem`` and gives each one's best average, or why it has none.

    Args:
        problem: modules and data.
        recipes: of each member; ``steps`` and ``evaluate_every`` must be the same for all.
        report: told about every evaluation of every member.
        checkpoint: where to keep what is needed to go on after a crash; a training that is there
            already is taken up. Remove it when the result is safe.
        stop: asked after every evaluation; True ends the training with what it has by then.
        stepped: told the number of every step that is done (on a GPU: that is on its way).

    Raises:
        ValueError: recipes that do not go together.
    """
    first = recipes[0]
    if any((r.steps, r.evaluate_every) != (first.steps, first.evaluate_every) for r in recipes):
        raise ValueError("trainings side by side need the same steps and evaluate_every")
    return _Loop(problem, recipes, report, checkpoint, stop, stepped).run()


def side_by_side(batch_sizes: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of the trainings, in order, in groups of at most ``most`` rows a step.

    A training whose batch is larger than that has a group of its own.
    """
    groups: list[list[int]] = []
    room = 0
    for number, rows in enumerate(batch_sizes):
        if rows > room or not groups:
            groups.append([])
            room = most
        groups[-1].append(number)
        room -= rows
    return groups


class _Loop:
    """One run of ``train_many``."""

    def __init__(
        self,
        problem: Problem,
        recipes: Sequence[TrainSpec],
        report: Callable[[int, Evaluation], None],
        checkpoint: Checkpoint | None,
        stop: Callable[[], bool],
        stepped: Callable[[int], None],
    ) -> None:
        self.problem, self.report, self.checkpoint = problem, report, checkpoint
        self.stop, self.stepped = stop, stepped
        self.started = time.monotonic()
        self.members = [_Member(recipe) for recipe in recipes]
        torch.manual_seed(recipes[0].seed)
        for module in problem.modules:
            module.train()
        self.step = Step(problem, recipes)
        self.batches = [
            [schedule(labels, recipe, problem.device) for labels in mine]
            for recipe, mine in zip(recipes, problem.labels, strict=True)
        ]
        self.earlier = 0.0

    def run(self) -> list[Trained | BridgeError]:
        steps, every = self.members[0].recipe.steps, self.members[0].recipe.evaluate_every
        total = torch.zeros_like(self.step.losses)
        begin = last = self._resume()
        for number in range(begin + 1, steps + 1):
            rates = [m.scale * learning_rate(number - 1, m.recipe) for m in self.members]
            rows = [[part[number - 1] for part in mine] for mine in self.batches]
            self.step(rates, rows)
            total += self.step.losses
            self.stepped(number)
            if number % every and number != steps:
                continue
            means = (total / (number - last)).tolist()
            total.zero_()
            last = number
            self._evaluate(number, means)
            if all(member.stale() for member in self.members) or self.stop():
                break
            if self.checkpoint is not None:
                self.checkpoint.save(self._progressed(number))
        return [self._finished(s, member) for s, member in enumerate(self.members)]

    def _seconds(self) -> float:
        return self.earlier + time.monotonic() - self.started

    def _evaluate(self, number: int, means: Sequence[float]) -> None:
        scores = self.problem.evaluate(self.step.averages)
        for s, (member, score, mean) in enumerate(zip(self.members, scores, means, strict=True)):
            if member.stale():  # it has ended; its neighbours go on
                continue
            if not (math.isfinite(mean) and math.isfinite(score.loss)):
                self._roll_back(s, member, number)
                continue
            now = _evaluation(number, score, mean, self._seconds())
            member.history.append(now)
            member.good = self.step.state(s)
            self.report(s, now)
            if member.best is None or now.rank > member.best.rank:
                member.best = now
                average = self.step.averages[s].state_dict()
                member.best_state = {k: v.detach().clone() for k, v in average.items()}

    def _roll_back(self, s: int, member: _Member, number: int) -> None:
        """Back to the last good evaluation at half the rate; without one, or too often, failure."""
        if not member.good or member.rollbacks >= ROLLBACKS:
            member.failure = BridgeError(
                f"the loss is not finite after {number} steps"
                + (f", for the {member.rollbacks + 1}th time." if member.rollbacks else "."),
                hint="Lower `train.learning_rate` in the scenario.",
            )
            return
        self.step.restore(s, member.good)
        member.rollbacks += 1
        member.scale /= 2

    def _finished(self, s: int, member: _Member) -> Trained | BridgeError:
        if member.failure is not None:
            return member.failure
        if member.best is None:  # steps >= 1, so the last step was evaluated
            return BridgeError("nothing was trained.", hint="Set `train.steps` to 1 or more.")
        module = self.problem.modules[s]
        module.load_state_dict(member.best_state)
        return Trained(module.eval(), member.best, tuple(member.history), self._seconds())

    # -- checkpoints --------------------------------------------------------------------------

    def _progressed(self, number: int) -> Progressed:
        tensors: dict[str, Tensor] = {}
        notes = []
        for s, member in enumerate(self.members):
            tensors |= {f"{s}/now/{key}": v for key, v in self.step.state(s).items()}
            tensors |= {f"{s}/best/{key}": v for key, v in member.best_state.items()}
            if self.problem.draws:
                tensors[f"{s}/draws"] = self.problem.draws[s].state
            notes.append(
                {
                    "history": [_plain(e) for e in member.history],
                    "best": None if member.best is None else _plain(member.best),
                    "rollbacks": member.rollbacks,
                    "scale": member.scale,
                    "failed": member.failure is not None,
                }
            )
        return Progressed(number, self._seconds(), tensors, notes)

    def _resume(self) -> int:
        """Takes up an earlier session; returns the step that it had reached."""
        found = self.checkpoint.load(self.problem.device) if self.checkpoint else None
        if found is None:
            return 0
        for s, (member, note) in enumerate(zip(self.members, found.notes, strict=True)):
            now = _under(found.tensors, f"{s}/now/")
            self.step.restore(s, now)
            if self.problem.draws:
                self.problem.draws[s].state = found.tensors[f"{s}/draws"].cpu()
            member.best_state = _under(found.tensors, f"{s}/best/")
            member.history = [_from_plain(e) for e in note["history"]]
            member.best = None if note["best"] is None else _from_plain(note["best"])
            member.rollbacks, member.scale = note["rollbacks"], note["scale"]
            member.good = now if member.history else {}
            if note["failed"]:
                member.failure = BridgeError("the loss was not finite in an earlier session.")
        self.earlier = found.seconds
        return found.step


def _evaluation(number: int, score: Score, mean: float, seconds: float) -> Evaluation:
    parts = score.parts if len(score.parts) > 1 else ()
    return Evaluation(number, score.loss, mean, score.accuracy, seconds, parts)


def _plain(e: Evaluation) -> list[object]:
    return [e.step, e.loss, e.train_loss, e.accuracy, e.seconds, list(e.parts)]


def _from_plain(values: Sequence[object]) -> Evaluation:
    *figures, parts = values
    return replace(Evaluation(*figures), parts=tuple(parts))  # type: ignore[arg-type]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def evaluate(
    module: nn.Module, logits: LogitsFromSoft, cache: StateCache, batch_size: int = 128
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all rows of ``cache``; payloads rounded to fp16."""
    return held_out_scores([module], [[0]], logits, [cache], batch_size)[0]


def train(
    module: BridgeModule,
    logits: LogitsFromSoft,
    cache: StateCache,
    held_out: StateCache,
    recipe: TrainSpec,
    report: Callable[[Evaluation], None],
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Trains one bridge (statistics and alpha already set) on one task.

    Raises:
        BridgeError: the loss is not finite any more.
    """
    problem = BridgeObjective([module], [Part(logits, [cache], [held_out])], [recipe])
    done = train_many(problem, [recipe], lambda _, now: report(now), checkpoint)[0]
    if isinstance(done, BridgeError):
        raise done
    return done
