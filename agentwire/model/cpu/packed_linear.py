"""Linear layers of a CPU model with weights laid out once for the products that use them.

For a few rows, as when a text is continued, a product waits for its weights; oneDNN reads them
faster from a blocked layout than BLAS does from rows and columns. The numbers are fp32 as before,
summed in another order, and the same for any number of threads.

The operation is the one that torch's own compiler puts in the place of a frozen linear layer. It
has no gradient: models that train are left as they are.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ROWS = 64
"""Rows that the layout is made for; others work, too."""
_TOLERANCE = 1e-4  # of a probe against the plain product, relative to its norm


class PackedLinear(nn.Module):
    """``nn.Linear`` for answering: ``weight`` as oneDNN lays it out."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().contiguous()
        # No parameter and no buffer: opaque, so it can be neither saved nor moved.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return y


def pack_linears(model: Any) -> int:
    """Replaces the linear layers of a CPU model's decoder where ``can_pack``; how many.

    Their plain weights are given up. The LM head keeps its own, which is read by row.
    """
    decoder = model.get_decoder()
    found = [
        (parent, name, child)
        for parent in decoder.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if not found or not can_pack(found[0][2]):
        return 0
    for parent, name, linear in found:
        setattr(parent, name, PackedLinear(linear))
    return len(found)


def can_pack(linear: Any) -> bool:
    """Whether this machine has the product, and it gives what the plain one gives."""
    if type(linear) is not nn.Linear:
        return False
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    probe = torch.linspace(-1, 1, 3 * linear.in_features).reshape(3, -1)
    try:
        with torch.inference_mode():
            error = PackedLinear(linear)(probe) - linear(probe)
            return bool(error.norm() <= _TOLERANCE * linear(probe).norm())
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as reason:
        log.info("linear layers stay as they are: %s", str(reason).splitlines()[0])
        return False
