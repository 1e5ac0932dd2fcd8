"""One optimiser step of S trainings: AdamW, warm-up and cosine decay, clipping, averaged weights.

On a GPU the whole step (gather, bridges, receiver, backward, clip, optimiser, average) is captured
as a CUDA graph, because at these sizes kernel launches cost more time than arithmetic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from agentwire.spec.scenario import TrainSpec
from agentwire.training.objective import Objective


def learning_rate(step: int, recipe: TrainSpec) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then cosine decay to a hundredth."""
    warm = max(1, int(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def weight_groups(module: nn.Module, recipe: TrainSpec) -> list[dict[str, object]]:
    """Applies weight decay to matrices only: not to biases, norms and latent queries."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, parameter in module.named_parameters():
        is_matrix = parameter.ndim == 2 and name.rpartition(".")[2] != "latents"
        groups[not is_matrix].append(parameter)
    decays = (recipe.weight_decay, 0.0)
    found = zip(groups, decays, strict=True)
    return [{"params": group, "weight_decay": decay} for group, decay in found if group]


class Step:
    """One optimiser step of every module, captured as a CUDA graph on a GPU.

    ``averages`` are exponential moving averages of the weights; ``losses`` [S] those of the last
    batch.
    """

    def __init__(self, objective: Objective, recipes: Sequence[TrainSpec]) -> None:
        self.objective, self.recipes = objective, list(recipes)
        self.device = objective.device
        captured = self.device.type == "cuda"
        self.rates = [torch.tensor(0.0, device=self.device) for _ in recipes]
        self.optimisers = [
            torch.optim.AdamW(
                weight_groups(module, recipe),
                lr=rate if captured else recipe.learning_rate,
                betas=(0.9, 0.98),
                capturable=captured,
                fused=captured or None,  # avoids hundreds of kernel launches per module
            )
            for module, recipe, rate in zip(objective.modules, recipes, self.rates, strict=True)
        ]
        self.averages = [copy.deepcopy(module).eval() for module in objective.modules]
        self.losses = torch.zeros(len(self.recipes), device=self.device)
        self._captured = captured
        self._rows: list[list[Tensor]] = []  # what the graphs read
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._side: torch.cuda.Stream | None = None
        # The graphs of one Step never run side by side, so they can share their memory.
        self._pool = torch.cuda.graph_pool_handle() if captured else None

    def _compute(self, rows: Sequence[Sequence[Tensor]], shape: Hashable) -> None:
        losses = torch.stack(self.objective.losses(rows, shape))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for module, recipe, optimiser, average in zip(
            self.objective.modules, self.recipes, self.optimisers, self.averages, strict=True
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

    def _capture(self, shape: Hashable) -> torch.cuda.CUDAGraph:
        """Captures the step of one shape, after warm-up steps whose effects are undone."""
        kept = [self.state(s) for s in range(len(self.recipes))]
        if self._side is None:
            self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side = self._side
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.random.fork_rng([self.device]):
            for _ in range(1 if self._graphs else 3):
                self._compute(self._rows, shape)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Captured on the side stream as well. cuBLAS keeps one workspace per stream, so graphs
        # that were captured on a shared stream would overwrite each other's workspace when they
        # are replayed side by side.
        with torch.cuda.graph(graph, stream=side, pool=self._pool):
            self._compute(self._rows, shape)
        for s, state in enumerate(kept):
            self.restore(s, state)
            for name, parameter in self.objective.modules[s].named_parameters():
                for key, value in self.optimisers[s].state.get(parameter, {}).items():
                    if f"optimiser.{name}.{key}" not in state:
                        value.zero_()
        return graph

    def __call__(
        self, rates: Sequence[float], rows: Sequence[Sequence[Tensor]], shape: Hashable = None
    ) -> None:
        """Trains each module on ``rows[module][task]`` [batch_size] at its rate."""
        if not self._captured:
            for optimiser, rate in zip(self.optimisers, rates, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = rate
            self._compute(rows, shape)
            return
        for tensor, rate in zip(self.rates, rates, strict=True):
            tensor.fill_(rate)
        if not self._rows:
            self._rows = [[numbers.clone() for numbers in given] for given in rows]
        for buffers, given in zip(self._rows, rows, strict=True):
            for buffer, numbers in zip(buffers, given, strict=True):
                buffer.copy_(numbers)
        if shape not in self._graphs:
            with torch.cuda.device(self.device):  # may not be the current device
                self._graphs[shape] = self._capture(shape)
        self._graphs[shape].replay()

    def state(self, s: int) -> dict[str, Tensor]:
        """A copy of everything that the training of module ``s`` depends on, by name."""
        module, average, optimiser = self.objective.modules[s], self.averages[s], self.optimisers[s]
        found = {f"module.{key}": value for key, value in module.state_dict().items()}
        found |= {f"average.{key}": value for key, value in average.state_dict().items()}
        for name, parameter in module.named_parameters():
            for key, value in optimiser.state.get(parameter, {}).items():
                found[f"optimiser.{name}.{key}"] = value
        return {key: value.detach().clone() for key, value in found.items()}

    def restore(self, s: int, state: dict[str, Tensor]) -> None:
        """Restores what ``state`` returned, in place: a captured graph keeps its addresses."""
        module, average, optimiser = self.objective.modules[s], self.averages[s], self.optimisers[s]
        module.load_state_dict(under(state, "module."))
        average.load_state_dict(under(state, "average."))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    saved = state.get(f"optimiser.{name}.{key}")
                    known = optimiser.state[parameter]
                    if saved is not None and key in known:
                        known[key].copy_(saved)
                    elif saved is not None:
                        known[key] = saved.detach().clone()


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
