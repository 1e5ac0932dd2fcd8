"""What a method is: a name, a label that tells a reader what ran, and how to send one batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from agentwire.errors import RequestError
    from agentwire.runtime.reply import Reply
    from agentwire.runtime.runtime import Runtime

    Outcome: TypeAlias = Reply | RequestError
    """A row's answer, or why it has none."""

    SendBatch: TypeAlias = Callable[[Runtime, Resolved, Sequence[str]], Awaitable[list[Outcome]]]
    """Sends one batch of texts over the run's wire: one outcome a text, in order."""

    Prepare: TypeAlias = Callable[[Runtime, Resolved, "Tell"], Awaitable[None]]
    """Done once before a method's first batch: a baseline is trained, or taken from the cache."""

Tell = Callable[[str, float], None]
"""Told what goes on and the fraction done; called in the event loop."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One way to answer the task's rows.

    Attributes:
        name: as the scenario says it.
        title: for tables.
        describe: which models do what, for the models that really run.
        send: how one batch is sent.
        needs_bridge: it measures the bridge, so its messages must be able to go as soft tokens.
        prepare: what must be done before the first batch.
    """

    name: str
    title: str
    describe: Callable[[Resolved], str]
    send: SendBatch
    needs_bridge: bool = False
    prepare: Prepare | None = None


def sender_model(resolved: Resolved) -> str:
    """Name of the model at the sending end of the run's wire."""
    return resolved.choices[resolved.wire.spec.sender].model


def receiver_model(resolved: Resolved) -> str:
    """Name of the model at the receiving end of the run's wire."""
    return resolved.choices[resolved.wire.spec.receiver].model
