"""One optimiser step of S trainings: AdamW, warm-up and cosine, clipping, averaged weights.

On a GPU the whole step (gather, bridges, receiver, backward, clip, optimiser, average) is captured
as a CUDA graph: at these sizes a step is bound by kernel launches, not by arithmetic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agentwire.spec.scenario import TrainSpec
from agentwire.training.objective import Problem


def learning_rate(step: int, recipe: TrainSpec) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then cosine decay to a hundredth."""
    warm = max(1, int(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def schedule(labels: Tensor, recipe: TrainSpec, device: torch.device) -> Tensor:
    """Row numbers [steps, batch_size] for rows with these labels [n].

    Each epoch is a new permutation of all rows. With ``balanced`` rows are drawn with replacement
    instead, so that every class that has rows is as likely as any other.
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


def weight_groups(module: nn.Module, recipe: TrainSpec) -> list[dict[str, object]]:
    """Weight decay for matrices only: not for biases, norms and latent queries."""
    named = list(module.named_parameters())
    latents = {name for name, _ in named if name.rpartition(".")[2] == "latents"}
    matrices = [p for name, p in named if p.ndim == 2 and name not in latents]
    others = [p for name, p in named if p.ndim != 2 or name in latents]
    return [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


class Step:
    """One optimiser step of every member; captured as a CUDA graph where it can be.

    Attributes:
        averages: the exponential moving average of each member's weights.
        losses: [S] mean loss of each member's last batch.
    """

    def __init__(self, problem: Problem, recipes: Sequence[TrainSpec]) -> None:
        self.problem, self.recipes = problem, list(recipes)
        self.device = problem.device
        captured = self.device.type == "cuda"
        self.rates = [torch.tensor(0.0, device=self.device) for _ in recipes]
        self.optimisers = [
            torch.optim.AdamW(
                [group for group in weight_groups(module, recipe) if group["params"]],
                lr=rate if captured else recipe.learning_rate,
                betas=(0.9, 0.98),
                capturable=captured,
                fused=captured or None,  # otherwise hundreds of launches a member
            )
            for module, recipe, rate in zip(problem.modules, recipes, self.rates, strict=True)
        ]
        self.averages = [copy.deepcopy(module).eval() for module in problem.modules]
        self.losses = torch.zeros(len(self.recipes), device=self.device)
        self._rows = [
            [torch.zeros(recipe.batch_size, dtype=torch.long, device=self.device)
             for _ in mine]
            for recipe, mine in zip(recipes, problem.labels, strict=True)
        ]  # fmt: skip
        self._graph = None
        if captured:
            with torch.cuda.device(self.device):  # the receiver may not be on the first one
                self._graph = self._capture()

    def _compute(self, rows: Sequence[Sequence[Tensor]]) -> None:
        losses = torch.stack(self.problem.losses(rows))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for module, recipe, optimiser, average in zip(
            self.problem.modules, self.recipes, self.optimisers, self.averages, strict=True
        ):
            nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(average.parameters()), list(module.parameters()), 1 - recipe.average
                )
        with torch.no_grad():
            self.losses.copy_(losses)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Three warm-up steps on a side stream (with a zero rate), then the capture itself."""
        kept = [copy.deepcopy(module.state_dict()) for module in self.problem.modules]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._compute(self._rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Captured on the same stream: cuBLAS keeps one workspace a stream, so graphs captured on
        # a shared stream would write into each other's when several are replayed side by side.
        with torch.cuda.graph(graph, stream=side):
            self._compute(self._rows)
        for module, average, state in zip(self.problem.modules, self.averages, kept, strict=True):
            module.load_state_dict(state)
            average.load_state_dict(state)
        for optimiser in self.optimisers:
            for values in optimiser.state.values():
                for value in values.values():
                    value.zero_()
        return graph

    def __call__(self, rates: Sequence[float], rows: Sequence[Sequence[Tensor]]) -> None:
        """Each member learns from ``rows[member][part]`` [batch_size] at its rate."""
        if self._graph is None:
            for optimiser, rate in zip(self.optimisers, rates, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate
            self._compute(rows)
            return
        for tensor, rate in zip(self.rates, rates, strict=True):
            tensor.fill_(rate)
        for mine, given in zip(self._rows, rows, strict=True):
            for buffer, numbers in zip(mine, given, strict=True):
                buffer.copy_(numbers)
        self._graph.replay()

    def state(self, member: int) -> dict[str, Tensor]:
        """A copy of everything that one member's training depends on, by name."""
        module, average = self.problem.modules[member], self.averages[member]
        optimiser = self.optimisers[member]
        found = {f"module.{key}": value for key, value in module.state_dict().items()}
        found |= {f"average.{key}": value for key, value in average.state_dict().items()}
        for name, parameter in module.named_parameters():
            for key, value in optimiser.state.get(parameter, {}).items():
                found[f"optimiser.{name}.{key}"] = value
        return {key: value.detach().clone() for key, value in found.items()}

    def restore(self, member: int, state: dict[str, Tensor]) -> None:
        """Takes up a state from ``state``, in place: a captured graph keeps its addresses."""
        module, average = self.problem.modules[member], self.averages[member]
        optimiser = self.optimisers[member]
        for part, target in (("module.", module), ("average.", average)):
            target.load_state_dict(
                {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
            )
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    saved = state.get(f"optimiser.{name}.{key}")
                    if saved is None:
                        continue
                    known = optimiser.state[parameter]
                    if key in known:
                        known[key].copy_(saved)
                    else:
                        known[key] = saved.detach().clone()
