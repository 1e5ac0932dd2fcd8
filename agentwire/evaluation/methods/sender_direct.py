"""Sender direct: the sender's model reads the text itself and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentwire.evaluation.methods.base import MethodSpec, sender_model
from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from agentwire.evaluation.methods.base import Outcome
    from agentwire.runtime.runtime import Runtime


def _describe(resolved: Resolved) -> str:
    return f"{sender_model(resolved)} reads the text itself"


async def _send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    return await runtime.direct_batch(resolved.wire.spec.sender, texts)


SENDER_DIRECT = MethodSpec("sender_direct", "sender direct", _describe, _send)
