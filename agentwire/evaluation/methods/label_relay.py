"""Label relay: the sender answers by itself, and one byte, the class, crosses to the receiver.

The receiver looks the class's word up and reads it in the place of the text. A bridge that does no
better passes nothing on but the sender's own answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agentwire.errors import RequestError
from agentwire.evaluation.methods.base import MethodSpec, receiver_model, sender_model
from agentwire.scenario.resolve import Resolved

if TYPE_CHECKING:
    from agentwire.evaluation.methods.base import Outcome
    from agentwire.runtime.runtime import Runtime

BYTES = 1


def _describe(resolved: Resolved) -> str:
    return f"{sender_model(resolved)}'s own answer, one byte -> {receiver_model(resolved)}"


async def _send(runtime: Runtime, resolved: Resolved, texts: Sequence[str]) -> list[Outcome]:
    wire = resolved.wire.spec
    found: list[Outcome] = list(await runtime.direct_batch(wire.sender, texts))
    labelled = [i for i, one in enumerate(found) if not isinstance(one, RequestError)]
    words = [str(found[i].label) for i in labelled]  # type: ignore[union-attr]
    if not words:
        return found
    answers = await runtime.direct_batch(wire.receiver, words)
    for i, answer in zip(labelled, answers, strict=True):
        first = found[i]
        if isinstance(answer, RequestError) or isinstance(first, RequestError):
            found[i] = answer
            continue
        stages = {
            name: first.stages.get(name, 0.0) + answer.stages.get(name, 0.0)
            for name in {**first.stages, **answer.stages}
        }
        found[i] = replace(
            answer,
            stages=stages,
            latency_ms=first.latency_ms + answer.latency_ms,
            payload_bytes=BYTES,
        )
    return found


LABEL_RELAY = MethodSpec("label_relay", "label relay", _describe, _send)
