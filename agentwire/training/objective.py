"""What is trained: S small modules beside frozen models, and the loss of each.

The frozen receiver is the same for all modules, so S bridges (seeds, layers, rates) share one pass
through it: their soft tokens are concatenated along the batch. Rows do not see each other, so no
bridge's gradient depends on another bridge. Bridges with different M need separate passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.module import BridgeModule
from agentwire.spec.scenario import TrainSpec
from agentwire.training.joint import JointBridge, States

LogitsFromSoft = Callable[[Tensor], Tensor]
"""Soft tokens [n, M, d] -> label logits [n, L], differentiable: the frozen receiver."""
EVALUATED_ROWS = 2048
"""Rows in one pass of an evaluation, over all modules."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean cross-entropy and accuracy on held-out rows."""

    loss: float
    accuracy: float


def score(logits: Tensor, labels: Tensor) -> Score:
    """Mean cross-entropy and accuracy of logits [n, L] for class ids [n]."""
    right = float((logits.argmax(-1) == labels).double().mean())
    return Score(float(F.cross_entropy(logits.float(), labels)), right)


class RandomStream:
    """Random numbers of one module, so that its training does not depend on the others.

    This works on a CPU only: a CUDA graph draws from one generator and captures its position.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()
        self._own = device.type == "cpu"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside this context, torch draws from this stream."""
        if not self._own:
            yield
            return
        others = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(others)


class Objective(Protocol):
    """S trainings that share frozen models."""

    modules: Sequence[nn.Module]  # what each training learns
    random: Sequence[RandomStream]  # of each module; empty if only the schedule is random
    device: torch.device

    def batches(self, recipes: Sequence[TrainSpec]) -> Sequence[Sequence[Tensor]]:
        """Row numbers [steps, batch_size] for each module and task."""

    def shape(self, number: int) -> Hashable:
        """What the shapes of a step's tensors depend on; steps count from 0."""

    def losses(self, rows: Sequence[Sequence[Tensor]], shape: Any) -> list[Tensor]:
        """The loss of each module on its rows: ``rows[module][task]`` are row numbers."""

    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        """Held-out scores of ``modules``, which replace the trained ones (their averages)."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One task: the receiver with its prompt, and states for each module, which may read different
    layers or senders."""

    logits: LogitsFromSoft
    cache: Sequence[States]
    held_out: Sequence[States]


def schedule(labels: Tensor, recipe: TrainSpec, device: torch.device) -> Tensor:
    """Row numbers [steps, batch_size] for rows with these labels [n].

    Each epoch is a new permutation of all rows. With ``balanced``, rows are drawn with replacement
    instead, such that all classes are equally likely.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    needed, n = recipe.steps * recipe.batch_size, len(labels)
    if recipe.balanced:
        known = labels.cpu()
        weights = 1.0 / torch.bincount(known).double()[known]
        chosen = torch.multinomial(weights, needed, replacement=True, generator=generator)
    else:
        passes = [torch.randperm(n, generator=generator) for _ in range(math.ceil(needed / n))]
        chosen = torch.cat(passes)[:needed]
    return chosen.view(recipe.steps, recipe.batch_size).to(device)


def label_schedules(
    labels: Sequence[Sequence[Tensor]], recipes: Sequence[TrainSpec], device: torch.device
) -> list[list[Tensor]]:
    """The schedules of each module and task, for the labels [module][task]."""
    return [
        [schedule(known, recipe, device) for known in tasks]
        for recipe, tasks in zip(recipes, labels, strict=True)
    ]


def drop_tokens(mask: Tensor, rate: float) -> Tensor:
    """Hides random tokens of the text from the bridge. The first token is always kept."""
    keep = torch.rand(mask.shape, device=mask.device) >= rate
    keep[:, 0] = True
    return mask & keep


class BridgeObjective:
    """S calibrated bridges into one receiver. The mean losses of all tasks have equal weight."""

    def __init__(
        self,
        modules: Sequence[BridgeModule | JointBridge],
        tasks: Sequence[TrainingTask],
        recipes: Sequence[TrainSpec],
    ) -> None:
        self.modules: Sequence[nn.Module] = list(modules)
        self.tasks = list(tasks)
        self.recipes = list(recipes)
        self.labels: Sequence[Sequence[Tensor]] = [
            [task.cache[s].labels for task in tasks] for s in range(len(modules))
        ]
        self.device = tasks[0].cache[0].flat.device
        self.random: Sequence[RandomStream] = [
            RandomStream(recipe.seed, self.device) for recipe in recipes
        ]
        # Read here because nothing inside a CUDA graph may wait for the device.
        self._longest = [[cache.longest for cache in task.cache] for task in tasks]
        # Bridges with the same M: only their soft tokens fit into one batch.
        groups: dict[int, list[int]] = {}
        for s, module in enumerate(modules):
            groups.setdefault(module.soft_tokens, []).append(s)
        self._groups = list(groups.values())

    def batches(self, recipes: Sequence[TrainSpec]) -> Sequence[Sequence[Tensor]]:
        return label_schedules(self.labels, recipes, self.device)

    def shape(self, number: int) -> None:
        return None

    def losses(self, rows: Sequence[Sequence[Tensor]], shape: Any) -> list[Tensor]:
        total: list[list[Tensor]] = [[] for _ in self.modules]
        for t, task in enumerate(self.tasks):
            for group in self._groups:
                soft = [self._soft(s, t, rows[s][t]) for s in group]
                logits = torch.split(task.logits(torch.cat(soft)), [len(z) for z in soft])
                for s, z, answer in zip(group, soft, logits, strict=True):
                    total[s].append(self._loss(s, z, answer, task.cache[s].labels[rows[s][t]]))
        return [torch.stack(losses).mean() for losses in total]

    def _soft(self, s: int, t: int, rows: Tensor) -> Tensor:
        cache = self.tasks[t].cache[s]
        static = self.device.type == "cuda"
        width = self._longest[t][s] if static else int(cache.lengths[rows].max())
        states, mask = cache.gather(rows, width)
        rate = self.recipes[s].token_dropout
        with self.random[s]():
            if rate and isinstance(mask, tuple):  # one mask per sender
                mask = tuple(drop_tokens(one, rate) for one in mask)
            elif rate and isinstance(mask, Tensor):
                mask = drop_tokens(mask, rate)
            soft: Tensor = self.modules[s](states, mask)
        return soft

    def _loss(self, s: int, soft: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipes[s]
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if recipe.diversity:
            loss = loss + recipe.diversity * diversity_loss(soft, recipe.diversity_form)
        return loss

    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        scores: list[list[Score]] = [[] for _ in modules]
        for task in self.tasks:
            for group in self._groups:
                caches = [task.held_out[s] for s in group]
                answers = soft_logits([modules[s] for s in group], task.logits, caches)
                for s, cache, answer in zip(group, caches, answers, strict=True):
                    scores[s].append(score(answer, cache.labels))
        return [
            Score(fmean(one.loss for one in tasks), fmean(one.accuracy for one in tasks))
            for tasks in scores
        ]


def diversity_loss(soft: Tensor, form: Literal["orthogonality", "entropy"]) -> Tensor:
    """A scalar that pushes soft tokens [n, M, d] apart; its weight is ``TrainSpec.diversity``.

    Off by default. The two source papers define different losses, and "LatentWire: A Shared
    Soft-Token Interlingua for Heterogeneous LLM Communication" disables its own for tasks with two
    classes, because the bridge stayed at chance there.

    ``orthogonality`` (LatentWire): the mean squared cosine between different soft tokens of a row,

        1 / (n M (M - 1)) * sum_row sum_{i != j} cos(z_i, z_j)^2        in 0..1, 0: all orthogonal

    ``entropy`` (Telepathy, equation 4): with z the mean soft token of the batch and p = softmax(z),

        -H(p) / ln d = sum_k p_k ln p_k / ln d                          in -1..0, -1: p is flat

    divided by ln d so that a weight has the same effect at every width d. The paper does not say
    how a vector becomes a distribution; the softmax is our interpretation.
    """
    if form == "entropy":
        log_p = torch.log_softmax(soft.float().mean(dim=(0, 1)), dim=-1)
        return (log_p.exp() * log_p).sum() / math.log(soft.shape[-1])
    m = soft.shape[1]
    if m == 1:
        return soft.new_zeros(())
    unit = F.normalize(soft.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    # The diagonal is all ones, so subtracting m needs no mask.
    return (cosine.pow(2).sum(dim=(1, 2)) - m).mean() / (m * (m - 1))


@torch.inference_mode()
def soft_logits(
    modules: Sequence[nn.Module],
    logits: LogitsFromSoft,
    caches: Sequence[States],
    batch_rows: int = EVALUATED_ROWS,
) -> list[Tensor]:
    """Label logits [n, L] of all rows of each cache, for bridges with the same M.

    All caches must have the same number of rows. Payloads are rounded to fp16, as on the bus.
    """
    size = max(1, batch_rows // len(modules))
    found: list[list[Tensor]] = [[] for _ in modules]
    for begin in range(0, len(caches[0]), size):
        soft = []
        for module, cache in zip(modules, caches, strict=True):
            end = min(begin + size, len(cache))
            rows = torch.arange(begin, end, device=cache.flat.device)
            states, mask = cache.gather(rows, int(cache.lengths[rows].max()))
            soft.append(module(states, mask).half().float())
        for answers, part in zip(found, logits(torch.cat(soft)).chunk(len(modules)), strict=True):
            answers.append(part.float())
    return [torch.cat(answers) for answers in found]
