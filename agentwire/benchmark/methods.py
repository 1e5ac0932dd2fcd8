"""Methods of a benchmark: functions that send one message and wait for its answer.

* ``bridge``: soft tokens; a row that would go as text is an error.
* ``receiver_direct``: the receiver reads the text itself.
* ``receiver_replicas``: the same with two copies of the receiver in turn, one on each of the
  bridge's devices: what the bridge's hardware does without a bridge.
* ``text_relay``: the sender writes, the receiver reads.
* ``in_process``: the bridge's two models in this process, without agents and bus (``reference``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from agentwire.benchmark.drive import MessageStats, Send
from agentwire.runtime.pending import Outcome, replies_of
from agentwire.runtime.runtime import Runtime

REPLICA = "replica"
"""Name of the second copy of the receiver."""


def bridge(runtime: Runtime, sender: str, receiver: str) -> Send:
    async def send(texts: Sequence[str]) -> MessageStats:
        return _stats_of(
            await runtime.send_batch(sender, receiver, texts, channel="soft", fallback="error")
        )

    return send


def text_relay(runtime: Runtime, sender: str, receiver: str) -> Send:
    async def send(texts: Sequence[str]) -> MessageStats:
        return _stats_of(await runtime.send_batch(sender, receiver, texts, channel="text"))

    return send


def direct(runtime: Runtime, agents: Sequence[str]) -> Send:
    """The agents read the texts themselves and take messages in turn."""
    turn = itertools.cycle(agents)

    async def send(texts: Sequence[str]) -> MessageStats:
        return _stats_of(await runtime.direct_batch(next(turn), texts))

    return send


def _stats_of(outcomes: Sequence[Outcome]) -> MessageStats:
    """Stages of the slowest row.

    Raises:
        RequestError: a row has no answer.
    """
    slowest = max(replies_of(outcomes), key=lambda reply: reply.latency_ms)
    return MessageStats(slowest.stages, slowest.payload_bytes)
