"""A bridge architecture: each soft token is a linear map of the mean hidden state."""

import torch
from torch import Tensor, nn

from agentwire.bridge.module import BridgeModule
from agentwire.bridge.shape import BridgeShape


class MeanBridge(BridgeModule):
    architecture = "mean"
    positive = frozenset({"std", "alpha"})

    def __init__(self, shape: BridgeShape, *, dropout: float = 0.0) -> None:
        super().__init__(shape, dropout=dropout)
        self.register_buffer("mean", torch.zeros(shape.sender_width))
        self.register_buffer("std", torch.ones(shape.sender_width))
        self.register_buffer("alpha", torch.ones(()))
        self.project = nn.Linear(shape.sender_width, shape.soft_tokens * shape.width)
        self.dropout = nn.Dropout(dropout)

    def calibrate(self, mean: Tensor, std: Tensor, alpha: float) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.alpha.fill_(alpha)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = (states.float() - self.mean) / self.std
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        soft = self.project(self.dropout(mean))
        soft = soft.view(len(states), self.shape.soft_tokens, self.shape.width)
        return self.alpha * soft / soft.pow(2).mean(-1, keepdim=True).add(1e-12).sqrt()
