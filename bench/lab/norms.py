"""Fused RMS norms for frozen half-precision receivers in training.

At these sizes a training step is bound by kernel launches. transformers writes an RMS norm as eight
small operations, and twice as many backward: half of all launches of a Gemma layer. torch has it as
one operation each way. Only the half-precision copies that gradients pass through are changed; the
float32 models that score are left as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class FusedNorm(nn.Module):
    """x [..., d] over its RMS, times a fixed weight [d], in one operation."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def fuse_norms(model: Any) -> int:
    """Replaces the RMS norms of a frozen Llama or Gemma 3 model; returns how many.

    Gemma multiplies by one plus its weight, Llama by the weight.
    """
    count = 0
    for module in model.modules():
        for name, norm in list(module.named_children()):
            kind = type(norm).__name__
            if kind == "Gemma3RMSNorm":
                fused = FusedNorm((1.0 + norm.weight.detach().float()).to(norm.weight.dtype),
                                  norm.eps)  # fmt: skip
            elif kind == "LlamaRMSNorm":
                fused = FusedNorm(norm.weight.detach(), norm.variance_epsilon)
            else:
                continue
            setattr(module, name, fused)
            count += 1
    return count
