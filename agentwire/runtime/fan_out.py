"""Fan-out: one text, read once by its sender, handed to several receivers.

The sender keeps the soft tokens (mode ``keep``), and each receiver is asked about what is kept. So
the receivers must read one language: their wires have the same bridge, which they have where their
models are the same. Each has its own outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol, Unpack

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.runtime.call_options import KeepOptions, WireOptions, check_deadline
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import KeptPayload, Reply

READS: Final = 3
"""How often the sender reads the text, where it dies before every receiver has what it kept."""

Receivers = Sequence[str] | Mapping[str, WireOptions]
"""Names, or what each is asked apart from what all are."""


class Calls(Protocol):
    """What fan-out needs of the runtime."""

    async def keep(
        self, sender: str, receiver: str, text: str, **question: Unpack[KeepOptions]
    ) -> KeptPayload: ...

    async def send(
        self, sender: str, receiver: str, text: KeptPayload, **question: Unpack[WireOptions]
    ) -> Reply: ...


async def fan_out(
    calls: Calls,
    deployment: Deployment,
    sender: str,
    receivers: Receivers,
    text: str,
    question: WireOptions,
) -> dict[str, Outcome]:
    """As ``Runtime.fan_out``.

    Raises:
        ScenarioError: nobody to ask, no such wire, or their bridges differ.
        BusClosed: the runtime is closed.
    """
    asked = _asked(receivers, question)
    check_same_bridge(deployment, sender, list(asked))
    loop = asyncio.get_running_loop()
    end = loop.time() + check_deadline(question.get("deadline"), deployment.deadline_s)
    outcomes: dict[str, Outcome] = {}
    for _ in range(READS):
        left = [receiver for receiver in asked if not _is_final(outcomes.get(receiver))]
        if not left:
            break
        try:
            kept = await calls.keep(sender, left[0], text, **_keeping(question, end - loop.time()))
        except RequestError as error:
            outcomes |= dict.fromkeys(left, error)
            break
        seconds = end - loop.time()
        answers = await asyncio.gather(
            *(_ask(calls, kept, receiver, asked[receiver], seconds) for receiver in left)
        )
        outcomes |= dict(zip(left, answers, strict=True))
    return {receiver: outcomes[receiver] for receiver in asked}


def check_same_bridge(deployment: Deployment, sender: str, receivers: Sequence[str]) -> None:
    """
    Raises:
        ScenarioError: no such wire, or their bridges differ.
    """
    bridges = {r: deployment.bridges.get(deployment.wire(sender, r).name) for r in receivers}
    first = receivers[0]
    for receiver, bridge in bridges.items():
        if bridge != bridges[first]:
            raise ScenarioError(
                f"{first} and {receiver} cannot read one payload: wire {sender}->{first} uses the "
                f"bridge {bridges[first]}, {sender}->{receiver} uses {bridge}.",
                hint="Fan out to receivers of one model, whose wires have one bridge; or send the "
                "text to each.",
            )


def _asked(receivers: Receivers, question: WireOptions) -> dict[str, WireOptions]:
    if isinstance(receivers, str):
        receivers = [receivers]
    if not receivers:
        raise ScenarioError("Nobody is asked.", hint="Name a receiver or more.")
    own = receivers if isinstance(receivers, Mapping) else {}
    return {receiver: {**question, **own.get(receiver, {})} for receiver in receivers}


def _keeping(question: WireOptions, seconds: float) -> KeepOptions:
    return KeepOptions(
        bridge=question.get("bridge"),
        fallback=question.get("fallback"),
        channel=question.get("channel"),
        deadline=max(seconds, 1e-3),
    )


async def _ask(
    calls: Calls, kept: KeptPayload, receiver: str, question: WireOptions, seconds: float
) -> Outcome:
    own = question.get("deadline")
    most = seconds if own is None else min(own, seconds)
    asked: WireOptions = {**question, "deadline": max(most, 1e-3)}
    try:
        return await calls.send(kept.sender, receiver, replace(kept, receiver=receiver), **asked)
    except RequestError as error:
        return error


def _is_final(outcome: Outcome | None) -> bool:
    """What expired died with the sender: it can be read again."""
    expired = isinstance(outcome, RequestError) and outcome.code is NackCode.EXPIRED
    return outcome is not None and not expired
