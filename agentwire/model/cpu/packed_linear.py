"""Linear layers whose weights are laid out for oneDNN's matrix products.

With few rows, as in text generation, a product waits for its weights, and oneDNN reads them faster
from a blocked layout. Results are fp32, summed in another order, for any number of threads. The
operation, torch's own for a frozen layer, has no gradient.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ROWS = 64  # the layout is made for this many rows; other numbers work as well
_TOLERANCE = 1e-4  # error of the probe, relative to the norm of the plain product


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference, with oneDNN's weight layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().contiguous()
        # Not a parameter or buffer: the opaque layout can be neither saved nor moved.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return y


def pack_linears(model: Any) -> int:
    """Replaces the decoder's linear layers if ``can_pack``, and frees their weights; how many."""
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
    """Whether this machine has the operation and it agrees with the plain product."""
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
        log.info("Linear layers keep their plain layout: %s", str(reason).splitlines()[0])
        return False
