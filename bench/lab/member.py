"""One bridge of several that train in one job: its recipe, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agentwire.bridge.resampler import Resampler
from agentwire.spec.scenario import TrainSpec
from lab.world import Opening


@dataclass(frozen=True, slots=True)
class Member:
    """One bridge of a stack.

    Attributes:
        random: seed of a sender with fresh random weights; None: the real one.
        opening: what becomes of the sender's opening token (others in an ablation).
        rows: of the training part only so many; 0: all.
        kind: class of the module (others in an ablation).
        changes: what differs from the base recipe, for the record.
    """

    recipe: TrainSpec
    layer: int
    soft_tokens: int = 8
    name: str = ""
    random: int | None = None
    opening: Opening = "dropped"
    rows: int = 0
    kind: type[Resampler] = Resampler
    changes: dict[str, Any] = field(default_factory=dict)
