"""Low-rank adapters on a frozen model: Edward Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models" (2021, arXiv:2106.09685), equation 3: h = W x + (scale / r) B A x.

Why not a library: S adapters (seeds, rates) train in one pass here, each on its own part of the
batch, which shares the frozen model's work between them; libraries run one adapter at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def adapted(model: Any) -> list[tuple[str, nn.Linear]]:
    """The linear layers that get an adapter, by name: the attention's projections."""
    return [
        (name.replace(".", "/"), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS
    ]


class Adapter(nn.Module):
    """The trained matrices of one adapter: for each layer A [in, r] and B [r, out], B zero first.

    Args:
        model: the frozen model that it fits.
        rank: r.
        scale: weight of what it adds, divided by ``rank``.
    """

    def __init__(self, model: Any, rank: int = 16, scale: float = 32.0) -> None:
        super().__init__()
        self.factor = scale / rank
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for name, linear in adapted(model):
            down = torch.empty(linear.in_features, rank)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[name] = nn.Parameter(down)
            self.up[name] = nn.Parameter(torch.zeros(rank, linear.out_features))


@dataclass(slots=True)
class Adapted:
    """The adapters that work at the moment: the batch is split between them evenly, in order."""

    active: Sequence[Adapter] = field(default_factory=tuple)

    def add(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """``output`` of the layer ``name`` for the input x [n, T, in], plus what adapters add."""
        count = len(self.active)
        down = torch.stack([adapter.down[name] for adapter in self.active]).to(x.dtype)
        up = torch.stack([adapter.up[name] for adapter in self.active]).to(x.dtype)
        change = x.reshape(count, -1, x.shape[-1]) @ down @ up
        return output + self.active[0].factor * change.view_as(output)


@contextmanager
def adapters(model: Any) -> Iterator[Adapted]:
    """Lets adapters work on ``model`` while the context is open; the model stays as it is."""
    state = Adapted()

    def hook(name: str) -> Any:
        def added(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return state.add(name, args[0], output) if state.active else output

        return added

    handles = [linear.register_forward_hook(hook(name)) for name, linear in adapted(model)]
    try:
        yield state
    finally:
        for handle in handles:
            handle.remove()
