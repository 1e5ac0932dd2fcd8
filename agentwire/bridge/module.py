"""What every bridge architecture implements."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from agentwire.bridge.shape import Shape


class BridgeModule(nn.Module):
    """Interface: hidden states [n, T, sender_width] and a mask [n, T] -> soft tokens [n, M, width].

    ``mask`` is True where a token is. A reader bridge (``reader.Reader``) takes the states of
    several layers and a size M, and returns additions as well. ``store`` builds a module on the
    meta device, so the constructor must not read values.

    Args:
        shape: its sizes.
        dropout: of a module that trains.

    Attributes:
        architecture: the name that it is registered under.
        positive: names of tensors that are positive in every trained bridge.
    """

    architecture: ClassVar[str]
    positive: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, shape: Shape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape

    @property
    def soft_tokens(self) -> int:
        """The largest M."""
        return self.shape.soft_tokens

    def calibrate(self, mean: Tensor, std: Tensor, alpha: float) -> None:
        """Prepares an untrained bridge for its two models.

        Args:
            mean, std: [sender_width], of the training texts' hidden states.
            alpha: RMS of the receiver's input embeddings.
        """
        raise NotImplementedError

    def count_parameters(self) -> int:
        """Trained parameters; buffers are not among them."""
        return sum(p.numel() for p in self.parameters())
