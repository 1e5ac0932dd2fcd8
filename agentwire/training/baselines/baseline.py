"""What a baseline is: how it learns from a scenario's training rows and answers new texts.

A baseline is registered like any other method (docs/methods.md). This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from torch import Tensor

    from agentwire.training.baselines.context import BaselineContext


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a baseline learned.

    Attributes:
        tensors: its weights.
        notes: chosen settings and the accuracy on the held-out rows that chose them, as JSON.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A method that is fitted and scored in the runner's process, without agents.

    Attributes:
        title: for tables.
        describe: which models do what, for the models that really run.
        fit: learns from the training rows of the context. The result is cached and used again by
            every run with the same rows, models and settings.
        answer: label logits [n, L] of n texts, from what ``fit`` returned.
        uses_soft_tokens: whether its figures depend on M, so that a matrix repeats it for each M.
    """

    title: str
    describe: Callable[[Resolved], str]
    fit: Callable[[BaselineContext], Fitted]
    answer: Callable[[BaselineContext, Fitted, Sequence[str]], Tensor]
    uses_soft_tokens: bool = False


def sender_model(resolved: Resolved) -> str:
    return resolved.choices[resolved.wire.spec.sender].model


def receiver_model(resolved: Resolved) -> str:
    return resolved.choices[resolved.wire.spec.receiver].model
