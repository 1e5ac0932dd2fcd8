"""Low-rank adapters on a frozen model: Edward Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models" (2021, arXiv:2106.09685), equation 3: h = W x + (scale / r) B A x."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def adapted_layers(model: Any) -> list[tuple[str, nn.Linear]]:
    """The linear layers that get an adapter, by name: the attention projections."""
    return [
        (name.replace(".", "/"), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS
    ]


class Adapter(nn.Module):
    """The trained matrices: A [in, r] and B [r, out] per layer of ``model``. B starts at zero."""

    def __init__(self, model: Any, rank: int = 16, scale: float = 32.0) -> None:
        super().__init__()
        self.factor = scale / rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, linear in adapted_layers(model):
            down = torch.empty(linear.in_features, rank)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[name] = nn.Parameter(down)
            self.up[name] = nn.Parameter(torch.zeros(rank, linear.out_features))

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Adds the adapter's output to the layers of ``model`` inside this context."""

        def hook(name: str) -> Any:
            def added(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                x = args[0]
                down, up = self.down[name][None].to(x.dtype), self.up[name][None].to(x.dtype)
                change = x.reshape(1, -1, x.shape[-1]) @ down @ up
                changed: Tensor = output + self.factor * change.view_as(output)
                return changed

            return added

        layers = adapted_layers(model)
        handles = [linear.register_forward_hook(hook(name)) for name, linear in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
