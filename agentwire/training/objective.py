"""What is trained: S small modules beside frozen models, and the loss of each.

The receiver is frozen and the same for all of them, so S bridges (seeds, layers, rates) share one
pass through it: their soft tokens stand one after another along the batch. Rows do not see each
other, so no member's gradient depends on its neighbours. Bridges of another M pass on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.module import BridgeModule
from agentwire.spec.scenario import TrainSpec
from agentwire.training.diversity import diversity_loss
from agentwire.training.joint import JointBridge
from agentwire.training.states import States

LogitsFromSoft = Callable[[Tensor], Tensor]
"""Soft tokens [n, M, d] -> label logits [n, L], differentiable: the frozen receiver."""
EVALUATED_ROWS = 2048
"""Rows of one pass in an evaluation, over all members."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean cross-entropy and accuracy on held-out rows; several parts count alike."""

    loss: float
    accuracy: float
    parts: tuple[float, ...] = ()


class Draws:
    """A member's own random numbers, so that none depends on who trains beside it.

    On a CPU alone: a CUDA graph draws from one generator, whose place in it is captured.

    Attributes:
        state: of the generator, [bytes].
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()
        self._own = device.type == "cpu"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, torch draws from this stream."""
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


class Problem(Protocol):
    """S trainings that share frozen models.

    Attributes:
        modules: what each of them learns.
        labels: of the training rows, for each member one tensor a part.
        draws: each member's own random numbers; empty: nothing but the schedule is random.
        device: where everything is.
    """

    modules: Sequence[nn.Module]
    labels: Sequence[Sequence[Tensor]]
    draws: Sequence[Draws]
    device: torch.device

    def losses(self, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The loss of each member on its rows: ``rows[member][part]`` are row numbers."""

    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        """Held-out figures of these modules, which stand for ``modules`` (their averages)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task of a training.

    Attributes:
        logits: the frozen receiver, asked this task's question.
        cache: training states, for each member (it may read another layer, or several senders).
        held_out: held-out states, for each member.
    """

    logits: LogitsFromSoft
    cache: Sequence[States]
    held_out: Sequence[States]


def drop_tokens(mask: Tensor, rate: float) -> Tensor:
    """Hides a random part of the text's tokens from the bridge; the first is always kept."""
    keep = torch.rand(mask.shape, device=mask.device) >= rate
    keep[:, 0] = True
    return mask & keep


class BridgeObjective:
    """S bridges into one receiver, over one task or several.

    Args:
        modules: the bridges, with statistics and alpha set.
        parts: the tasks; each adds its mean loss with the same weight.
        recipes: of each bridge.
    """

    def __init__(
        self,
        modules: Sequence[BridgeModule | JointBridge],
        parts: Sequence[Part],
        recipes: Sequence[TrainSpec],
    ) -> None:
        self.modules: Sequence[nn.Module] = list(modules)
        self.parts = list(parts)
        self.recipes = list(recipes)
        self.labels: Sequence[Sequence[Tensor]] = [
            [part.cache[s].labels for part in parts] for s in range(len(modules))
        ]
        self.device = parts[0].cache[0].flat.device
        self.draws: Sequence[Draws] = [Draws(recipe.seed, self.device) for recipe in recipes]
        # Read now: inside a CUDA graph nothing may wait for the device.
        self._longest = [[cache.longest for cache in part.cache] for part in parts]
        self._groups = _by_soft_tokens(modules)

    def losses(self, rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        total: list[list[Tensor]] = [[] for _ in self.modules]
        for p, part in enumerate(self.parts):
            for group in self._groups:
                soft = [self._soft(s, p, rows[s][p]) for s in group]
                logits = torch.split(part.logits(torch.cat(soft)), [len(z) for z in soft])
                for s, z, answer in zip(group, soft, logits, strict=True):
                    total[s].append(self._loss(s, z, answer, part.cache[s].labels[rows[s][p]]))
        return [torch.stack(losses).mean() for losses in total]

    def _soft(self, member: int, p: int, rows: Tensor) -> Tensor:
        cache = self.parts[p].cache[member]
        static = self.device.type == "cuda"
        width = self._longest[p][member] if static else int(cache.lengths[rows].max())
        states, mask = cache.gather(rows, width)
        rate = self.recipes[member].token_dropout
        with self.draws[member]():
            if rate and isinstance(mask, tuple):  # of several senders
                mask = tuple(drop_tokens(part, rate) for part in mask)
            elif rate:
                mask = drop_tokens(mask, rate)
            soft: Tensor = self.modules[member](states, mask)
        return soft

    def _loss(self, member: int, soft: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipes[member]
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if recipe.diversity:
            loss = loss + recipe.diversity * diversity_loss(soft, recipe.diversity_form)
        return loss

    def evaluate(self, modules: Sequence[nn.Module]) -> list[Score]:
        scores = [
            held_out_scores(modules, self._groups, part.logits, part.held_out)
            for part in self.parts
        ]
        return [
            Score(
                loss=sum(loss for loss, _ in member) / len(member),
                accuracy=sum(accuracy for _, accuracy in member) / len(member),
                parts=tuple(accuracy for _, accuracy in member),
            )
            for member in zip(*scores, strict=True)
        ]


def _by_soft_tokens(modules: Sequence[BridgeModule | JointBridge]) -> list[list[int]]:
    """Members whose soft tokens can stand in one batch: those with the same M."""
    groups: dict[int, list[int]] = {}
    for index, module in enumerate(modules):
        groups.setdefault(module.shape.soft_tokens, []).append(index)
    return list(groups.values())


def held_out_scores(
    modules: Sequence[nn.Module],
    groups: Sequence[Sequence[int]],
    logits: LogitsFromSoft,
    caches: Sequence[States],
    batch_rows: int = EVALUATED_ROWS,
) -> list[tuple[float, float]]:
    """Mean cross-entropy and accuracy of each module; payloads rounded to fp16, as they ship."""
    found = [(0.0, 0.0)] * len(modules)
    for group in groups:
        answers = scores_of([modules[s] for s in group], logits, [caches[s] for s in group],
                            batch_rows)  # fmt: skip
        for s, answer in zip(group, answers, strict=True):
            labels = caches[s].labels
            loss = F.cross_entropy(answer, labels)
            right = (answer.argmax(-1) == labels).double().mean()
            found[s] = float(loss), float(right)
    return found


@torch.inference_mode()
def scores_of(
    modules: Sequence[nn.Module],
    logits: LogitsFromSoft,
    caches: Sequence[States],
    batch_rows: int = EVALUATED_ROWS,
) -> list[Tensor]:
    """Label logits [n, L] of all rows of each cache, for bridges with the same M.

    All caches hold as many rows. Payloads are rounded to fp16, as they cross the bus.
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
