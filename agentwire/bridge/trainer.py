"""The training loop of a bridge: both language models are frozen, only the bridge learns.

Loss: cross-entropy over the task's label words at the receiver's first answer position, the same
quantity that scoring uses. AdamW, linear warm-up and cosine decay, gradient clipping, an
exponential moving average of the weights; the step is chosen on held-out training rows.

On a GPU one whole step (gather, bridge, receiver, backward, clip, optimiser, average) is captured
as a CUDA graph: at these sizes a step is bound by kernel launches, not by arithmetic.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.resampler import Resampler
from agentwire.bridge.states import StateCache
from agentwire.errors import BridgeError
from agentwire.scenario.schema import TrainSpec

LogitsFromSoft = Callable[[Tensor], Tensor]
"""Soft tokens [n, M, d] -> label logits [n, L], differentiable: the frozen receiver."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out figures at one step."""

    step: int
    loss: float
    train_loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained bridge and its history; ``best`` is the evaluation it was chosen for."""

    module: Resampler
    best: Evaluation
    history: tuple[Evaluation, ...]
    seconds: float


def learning_rate(step: int, recipe: TrainSpec) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then cosine decay to a hundredth."""
    warm = max(1, int(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def drop_tokens(mask: Tensor, rate: float) -> Tensor:
    """Hides a random part of the text's tokens from the bridge; the first is always kept."""
    keep = torch.rand(mask.shape, device=mask.device) >= rate
    keep[:, 0] = True
    return mask & keep


class Step:
    """One optimiser step on a batch of row numbers; captured as a CUDA graph where it can be."""

    def __init__(
        self, module: Resampler, logits: LogitsFromSoft, cache: StateCache, recipe: TrainSpec
    ) -> None:
        self.module, self.logits, self.cache, self.recipe = module, logits, cache, recipe
        self.device = cache.flat.device
        captured = self.device.type == "cuda"
        self.rate = torch.tensor(recipe.learning_rate, device=self.device)
        self.optimiser = torch.optim.AdamW(
            self._groups(),
            lr=self.rate if captured else recipe.learning_rate,
            betas=(0.9, 0.98),
            capturable=captured,
        )
        self.average = copy.deepcopy(module).eval()
        self.loss = torch.zeros((), device=self.device)
        self._rows = torch.zeros(recipe.batch_size, dtype=torch.long, device=self.device)
        self._graph = self._capture() if captured else None

    def _groups(self) -> list[dict[str, object]]:
        """Weight decay for matrices only: not for biases, norms and the latent queries."""
        named = list(self.module.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and name != "latents"]
        others = [p for name, p in named if not (p.ndim == 2 and name != "latents")]
        return [
            {"params": matrices, "weight_decay": self.recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def _compute(self, rows: Tensor, width: int) -> None:
        states, mask = self.cache.gather(rows, width)
        if self.recipe.token_dropout:
            mask = drop_tokens(mask, self.recipe.token_dropout)
        loss = F.cross_entropy(
            self.logits(self.module(states, mask)),
            self.cache.labels[rows],
            label_smoothing=self.recipe.label_smoothing,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()),
                list(self.module.parameters()),
                1 - self.recipe.average,
            )
            self.loss.copy_(loss)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Three warm-up steps on a side stream (with a zero rate), then the capture itself."""
        kept = copy.deepcopy(self.module.state_dict())
        width = self.cache.longest  # read before the capture, in which nothing may wait
        self.rate.zero_()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._compute(self._rows, width)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Captured on the same stream: cuBLAS keeps one workspace a stream, so graphs captured on
        # a shared stream would write into each other's when several are replayed side by side.
        with torch.cuda.graph(graph, stream=side):
            self._compute(self._rows, width)
        self.module.load_state_dict(kept)
        self.average.load_state_dict(kept)
        for state in self.optimiser.state.values():
            for value in state.values():
                value.zero_()
        return graph

    def __call__(self, step: int, rows: Tensor) -> None:
        """Learns from the rows [batch_size]; ``loss`` then holds the batch's mean loss."""
        rate = learning_rate(step, self.recipe)
        if self._graph is not None:
            self.rate.fill_(rate)
            self._rows.copy_(rows)
            self._graph.replay()
            return
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self._compute(rows, int(self.cache.lengths[rows].max()))


@torch.inference_mode()
def evaluate(
    module: Resampler, logits: LogitsFromSoft, cache: StateCache, batch_size: int = 128
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all rows of ``cache``; payloads rounded to fp16."""
    right, loss = 0, 0.0
    for begin in range(0, len(cache), batch_size):
        rows = torch.arange(begin, min(begin + batch_size, len(cache)), device=cache.flat.device)
        states, mask = cache.gather(rows, int(cache.lengths[rows].max()))
        scores = logits(module(states, mask).half().float())
        labels = cache.labels[rows]
        right += int((scores.argmax(-1) == labels).sum())
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
    return loss / len(cache), right / len(cache)


def schedule(n: int, recipe: TrainSpec, device: torch.device) -> Tensor:
    """Row numbers [steps, batch_size]: each epoch is a new permutation of all n rows."""
    generator = torch.Generator().manual_seed(recipe.seed)
    needed = recipe.steps * recipe.batch_size
    passes = [torch.randperm(n, generator=generator) for _ in range(math.ceil(needed / n))]
    return torch.cat(passes)[:needed].view(recipe.steps, recipe.batch_size).to(device)


def train(
    module: Resampler,
    logits: LogitsFromSoft,
    cache: StateCache,
    held_out: StateCache,
    recipe: TrainSpec,
    report: Callable[[Evaluation], None],
) -> Trained:
    """Trains ``module`` (statistics and alpha already set) and returns its best average.

    Raises:
        BridgeError: the loss is not finite any more.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    module.train()
    step = Step(module, logits, cache, recipe)
    batches = schedule(len(cache), recipe, cache.flat.device)
    history: list[Evaluation] = []
    best: tuple[Evaluation, dict[str, Tensor]] | None = None
    running: list[Tensor] = []
    for number in range(1, recipe.steps + 1):
        step(number - 1, batches[number - 1])
        running.append(step.loss.clone())
        if number % recipe.evaluate_every and number != recipe.steps:
            continue
        train_loss = float(torch.stack(running).mean())
        running.clear()
        if not math.isfinite(train_loss):
            raise BridgeError(
                f"the loss is not finite after {number} steps.",
                hint="Lower `train.learning_rate` in the scenario.",
            )
        loss, accuracy = evaluate(step.average, logits, held_out)
        seconds = time.monotonic() - started
        now = Evaluation(number, loss, train_loss, accuracy, seconds)
        history.append(now)
        report(now)
        if best is None or (accuracy, -loss) > (best[0].accuracy, -best[0].loss):
            best = now, copy.deepcopy(step.average.state_dict())
    if best is None:  # recipe.steps >= 1, so the last step was evaluated
        raise BridgeError("nothing was trained.", hint="Set `train.steps` to 1 or more.")
    module.load_state_dict(best[1])
    return Trained(module.eval(), best[0], tuple(history), time.monotonic() - started)
