"""The training loop: both language models are frozen, only small modules beside them learn.

The loss is the cross-entropy over the task's label words at the receiver's first answer position,
which is also how methods are scored. Held-out training rows choose the step. Several trainings
(seeds, layers, rates, Ms) run side by side and share each pass through the frozen receiver.

If a loss becomes infinite or NaN, that training returns to its last good evaluation and continues
at half the learning rate, up to three times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.training.checkpoint import Checkpoint, Snapshot
from agentwire.training.objective import Objective
from agentwire.training.optimise import Step, learning_rate, under

ROLLBACKS = 3


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures at one step: the training loss since the last evaluation, and held-out figures."""

    step: int
    loss: float
    train_loss: float
    accuracy: float

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: accuracy first, then the lower loss."""
        return self.accuracy, -self.loss


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained module and its history; ``best`` is the evaluation whose weights it has."""

    module: nn.Module
    best: Evaluation
    history: tuple[Evaluation, ...]


@dataclass(slots=True)
class _TrainingState:
    """The state of one training."""

    recipe: TrainSpec
    history: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    last_good: dict[str, Tensor] = field(default_factory=dict)
    rollbacks: int = 0
    rate_scale: float = 1.0
    failure: BridgeError | None = None

    @property
    def ended(self) -> bool:
        """Whether it failed, or early stopping ended it."""
        patience = self.recipe.patience
        if self.failure is not None:
            return True
        if not patience or self.best is None:
            return False
        return sum(e.step > self.best.step for e in self.history) >= patience


def train_many(
    objective: Objective,
    recipes: Sequence[TrainSpec],
    report: Callable[[Sequence[Evaluation]], None] = lambda evaluations: None,
    checkpoint: Checkpoint | None = None,
    stepped: Callable[[int], None] = lambda number: None,
) -> list[Trained | BridgeError]:
    """Trains every module of ``objective`` and returns its best average, or why it failed.

    Args:
        recipes: one per module; ``steps`` and ``evaluate_every`` must be the same for all.
        report: called with the evaluations of all modules that still train.
        checkpoint: where the state is saved after each evaluation. A saved state of the same
            training is resumed. Remove it when the result is safe.
        stepped: called with the number of every finished step (on a GPU: every submitted step).

    Raises:
        ValueError: the recipes differ in ``steps`` or ``evaluate_every``.
    """
    first = recipes[0]
    if any((r.steps, r.evaluate_every) != (first.steps, first.evaluate_every) for r in recipes):
        raise ValueError("trainings side by side need the same steps and evaluate_every")
    torch.manual_seed(first.seed)
    for module in objective.modules:
        module.train()
    session = _Session(objective, recipes)
    batches = objective.batches(recipes)
    total = torch.zeros_like(session.step.losses)
    saved = checkpoint.load(objective.device) if checkpoint else None
    begin = last = session.resume(saved) if saved else 0
    for number in range(begin + 1, first.steps + 1):
        rates = [s.rate_scale * learning_rate(number - 1, s.recipe) for s in session.states]
        rows = [[one[number - 1] for one in tasks] for tasks in batches]
        session.step(rates, rows, objective.shape(number - 1))
        total += session.step.losses
        stepped(number)
        if number % first.evaluate_every and number != first.steps:
            continue
        evaluations = session.evaluate(number, (total / (number - last)).tolist())
        if evaluations:
            report(evaluations)
        total.zero_()
        last = number
        if all(state.ended for state in session.states):
            break
        if checkpoint is not None:
            checkpoint.save(session.snapshot(number))
    return [session.finished(s) for s in range(len(recipes))]


class _Session:
    """Trainings side by side: their steps, states and snapshots."""

    def __init__(self, objective: Objective, recipes: Sequence[TrainSpec]) -> None:
        self.objective = objective
        self.states = [_TrainingState(recipe) for recipe in recipes]
        self.step = Step(objective, recipes)

    def evaluate(self, number: int, means: Sequence[float]) -> list[Evaluation]:
        """The evaluations of those that still train; a loss that is not finite rolls back."""
        scores = self.objective.evaluate(self.step.averages)
        evaluations = []
        for s, (state, score, mean) in enumerate(zip(self.states, scores, means, strict=True)):
            if state.ended:
                continue
            if not (math.isfinite(mean) and math.isfinite(score.loss)):
                self._roll_back(s, state, number)
                continue
            evaluation = Evaluation(number, score.loss, mean, score.accuracy)
            state.history.append(evaluation)
            state.last_good = self.step.state(s)
            evaluations.append(evaluation)
            if state.best is None or evaluation.rank > state.best.rank:
                state.best = evaluation
                average = self.step.averages[s].state_dict()
                state.best_weights = {k: v.detach().clone() for k, v in average.items()}
        return evaluations

    def _roll_back(self, s: int, state: _TrainingState, number: int) -> None:
        """Returns to the last good evaluation at half the rate. Fails if there is none."""
        if not state.last_good or state.rollbacks >= ROLLBACKS:
            state.failure = BridgeError(
                f"the loss is not finite after {number} steps"
                + (f", for the {state.rollbacks + 1}th time." if state.rollbacks else "."),
                hint="Lower `train.learning_rate` in the scenario.",
            )
            return
        self.step.restore(s, state.last_good)
        state.rollbacks += 1
        state.rate_scale /= 2

    def finished(self, s: int) -> Trained | BridgeError:
        state = self.states[s]
        if state.failure is not None:
            return state.failure
        assert state.best is not None  # steps >= 1, and the last step is evaluated
        module = self.objective.modules[s]
        module.load_state_dict(state.best_weights)
        return Trained(module.eval(), state.best, tuple(state.history))

    def snapshot(self, number: int) -> Snapshot:
        tensors: dict[str, Tensor] = {}
        notes = []
        for s, state in enumerate(self.states):
            tensors |= {f"{s}/now/{key}": v for key, v in self.step.state(s).items()}
            tensors |= {f"{s}/best/{key}": v for key, v in state.best_weights.items()}
            if self.objective.random:
                tensors[f"{s}/random"] = self.objective.random[s].state
            notes.append(
                {
                    "history": [asdict(e) for e in state.history],
                    "best": None if state.best is None else asdict(state.best),
                    "rollbacks": state.rollbacks,
                    "scale": state.rate_scale,
                    "failed": state.failure is not None,
                }
            )
        return Snapshot(number, tensors, notes)

    def resume(self, found: Snapshot) -> int:
        """Restores an earlier session and returns the step that it reached."""
        for s, (state, note) in enumerate(zip(self.states, found.notes, strict=True)):
            now = under(found.tensors, f"{s}/now/")
            self.step.restore(s, now)
            if self.objective.random:
                self.objective.random[s].state = found.tensors[f"{s}/random"].cpu()
            state.best_weights = under(found.tensors, f"{s}/best/")
            state.history = [Evaluation(**e) for e in note["history"]]
            state.best = None if note["best"] is None else Evaluation(**note["best"])
            state.rollbacks, state.rate_scale = note["rollbacks"], note["scale"]
            state.last_good = now if state.history else {}
            if note["failed"]:
                state.failure = BridgeError("the loss was not finite in an earlier session.")
        return found.step
