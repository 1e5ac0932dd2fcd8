"""The least-squares map between two models' embedding tables over shared vocabulary pieces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# GPT-2's byte-level vocabularies and SentencePiece's mark a leading space differently.
_SPACES = {"\u0120": " ", "\u2581": " "}


def shared_pieces(sender: Any, receiver: Any) -> list[tuple[int, int]]:
    """Pairs of token ids (sender's, receiver's) that stand for the same text.

    Args:
        sender, receiver: tokenizers of the ``transformers`` library.
    """
    theirs = {_text(piece): number for piece, number in receiver.get_vocab().items()}
    pairs = (
        (number, theirs.get(_text(piece))) for piece, number in sorted(sender.get_vocab().items())
    )
    return [(mine, other) for mine, other in pairs if other is not None]


def _text(piece: str) -> str:
    for mark, space in _SPACES.items():
        piece = piece.replace(mark, space)
    return piece


def least_squares(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """The affine map from ``source`` [n, a] to ``target`` [n, b] with the least squared error.

    Args:
        weights: [n] factors of the rows' errors before these are squared.

    Returns:
        weight [b, a], bias [b], and the share of the target's variance that it explains (R2).
    """
    ones = torch.ones(len(source), 1, dtype=torch.float64, device=source.device)
    scale = weights.double()[:, None]
    x = torch.cat([source.double(), ones], dim=1) * scale
    y = target.double() * scale
    centre = (target.double() * scale**2).sum(0) / (scale**2).sum()
    # Normal equations with a small ridge: the tables are tall, and float64 is exact enough.
    gram = x.T @ x
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    solved = torch.linalg.solve(gram, x.T @ y)
    rest = (y - x @ solved).pow(2).sum() / ((target.double() - centre) * scale).pow(2).sum()
    return solved[:-1].T.float(), solved[-1].float(), float(1 - rest)
