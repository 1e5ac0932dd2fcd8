"""What a benchmark compares, each as a function that sends one message and waits for its answer.

* ``bridge``: soft tokens; a row that would go as text is an error, never a figure.
* ``receiver_direct``: the receiver reads the text itself.
* ``receiver_replicas``: the same with as many copies of the receiver as the bridge has agents, each
  on a device of its own, messages dealt in turn: what the bridge's hardware does without a bridge.
* ``text_relay``: the sender writes, the receiver reads.
* ``in_process``: the bridge's two models in this process, without agents and bus (``reference``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from agentwire.benchmark.drive import Answer, Send
from agentwire.errors import RequestError
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import Reply
from agentwire.runtime.runtime import Runtime

REPLICA = "replica"
"""Name of the second copy of the receiver."""


def bridge(runtime: Runtime, sender: str, receiver: str) -> Send:
    async def send(texts: Sequence[str]) -> Answer:
        outcomes = await runtime.send_batch(
            sender, receiver, texts, channel="soft", fallback="error"
        )
        return _answer(outcomes)

    return send


def text_relay(runtime: Runtime, sender: str, receiver: str) -> Send:
    async def send(texts: Sequence[str]) -> Answer:
        return _answer(await runtime.send_batch(sender, receiver, texts, channel="text"))

    return send


def direct(runtime: Runtime, agents: Sequence[str]) -> Send:
    """The agents read the texts themselves, one message after the other in turn."""
    turn = itertools.cycle(agents)

    async def send(texts: Sequence[str]) -> Answer:
        return _answer(await runtime.direct_batch(next(turn), texts))

    return send


def _answer(outcomes: Sequence[Outcome]) -> Answer:
    """The slowest row of a message.

    Raises:
        RequestError: a row has no answer.
    """
    slowest: Reply | None = None
    for outcome in outcomes:
        if isinstance(outcome, RequestError):
            raise outcome
        if slowest is None or outcome.latency_ms > slowest.latency_ms:
            slowest = outcome
    assert slowest is not None  # a message has a row
    return Answer(slowest.stages, slowest.payload_bytes)
