"""What a method is: a name, a description of what ran, and how it answers one batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from agentwire.download import OnProgress
from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from agentwire.runtime.pending import Outcome
    from agentwire.runtime.runtime import Runtime

    SendBatch: TypeAlias = Callable[..., Awaitable[list[Outcome]]]
    """Sends a batch over the run's wire and returns one outcome per text, in order. It is called
    with (Runtime, Resolved, texts), and for tasks of kind ``answer`` with the questions, one per
    text, as the fourth argument."""

    Prepare: TypeAlias = Callable[[Runtime, Resolved, OnProgress], Awaitable[None]]
    """Runs once before the first batch. Progress is called in the event loop."""


Kind: TypeAlias = Literal["classify", "answer"]
LABELS: tuple[Kind, ...] = ("classify",)
QUESTIONS: tuple[Kind, ...] = ("answer",)
BOTH = LABELS + QUESTIONS


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One way to answer the task's rows.

    Attributes:
        name: as in the scenario.
        title: for tables.
        describe: which models do what, for the models that really run.
        send: answers one batch.
        needs_bridge: whether it measures the bridge, so that its messages must be soft tokens.
        prepare: what must be done before the first batch, for example training a baseline.
        uses_soft_tokens: whether its figures depend on M, although no message has soft tokens.
        several_senders: whether it supports a wire of several senders.
        kinds: kinds of tasks that it supports.
        trains_on: kinds of tasks for which ``prepare`` reads training rows.
    """

    name: str
    title: str
    describe: Callable[[Resolved], str]
    send: SendBatch
    needs_bridge: bool = False
    prepare: Prepare | None = None
    uses_soft_tokens: bool = False
    several_senders: bool = False
    kinds: tuple[Kind, ...] = LABELS
    trains_on: tuple[Kind, ...] = LABELS
