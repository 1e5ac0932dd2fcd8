"""Bridges of several senders, trained together: the receiver reads the soft tokens of all of them.

Each is a bridge of its own, on its sender's device, with its own M soft tokens. Together they are
one module that concatenates their soft tokens in a fixed order. They share one loss, so each learns
what the others leave to it. An ordinary bridge is trained as a set of one, with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agentwire.bridge.module import BridgeModule
from agentwire.training.states import StateCache


class JointBridge(nn.Module):
    """Several bridges into one receiver, in the order in which it reads their soft tokens."""

    def __init__(self, parts: Sequence[BridgeModule]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @property
    def bridges(self) -> tuple[BridgeModule, ...]:
        return tuple(part for part in self.parts if isinstance(part, BridgeModule))

    @property
    def soft_tokens(self) -> int:
        """M of all parts together."""
        return sum(bridge.shape.soft_tokens for bridge in self.bridges)

    def forward(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Each sender's states [n, T, width] and mask [n, T] -> [n, sum of M, d]."""
        soft = [part(s, m) for part, s, m in zip(self.parts, states, masks, strict=True)]
        return torch.cat(soft, dim=1)


@dataclass(frozen=True, slots=True)
class JointStates:
    """Hidden states of the same rows, one part per sender. Senders may read different texts."""

    parts: tuple[StateCache, ...]

    @property
    def labels(self) -> Tensor:
        return self.parts[0].labels

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def flat(self) -> Tensor:
        """Of the first sender; all parts are on its device."""
        return self.parts[0].flat

    @property
    def lengths(self) -> Tensor:
        """[n] tokens of each row's longest text."""
        return torch.stack([part.lengths for part in self.parts]).amax(dim=0)

    @property
    def longest(self) -> int:
        return max(part.longest for part in self.parts)

    def gather(self, rows: Tensor, width: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """States [b, width, d] and masks [b, width] of these rows, one of each per sender."""
        states, masks = zip(*(part.gather(rows, width) for part in self.parts), strict=True)
        return states, masks


States = StateCache | JointStates
