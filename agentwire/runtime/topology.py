"""Fan-out (one sender, several receivers) and fan-in (several senders, one receiver).

Fan-out: the sender reads the text once and keeps the payload, then each receiver is asked about it.
All wires must therefore have the same bridge. Fan-in: the receiver holds the payloads of all
senders and is asked about all of them, in the declared order. This needs bridges that were trained
together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar, Unpack

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.runtime.call_options import (
    KEEP,
    KeepOptions,
    WireOptions,
    check_deadline,
    row_contents,
)
from agentwire.runtime.client import Client
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import KeptPayload, Reply
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import Channel, Mode, TaskSpec, direct_wire

K = TypeVar("K")
MAX_READS: Final = 3
"""How often senders read a text, if the agent that has their payloads dies before it was asked."""

Receivers = Sequence[str] | Mapping[str, WireOptions]
"""Names of receivers, or the options of each, which override those of the call."""
SenderTexts = Sequence[str | KeptPayload]
"""A text or a kept payload for each sender."""


class KeepAndSend(Protocol):
    """The part of ``Runtime`` that fan-out uses."""

    async def keep(
        self, sender: str, receiver: str, text: str, **options: Unpack[KeepOptions]
    ) -> KeptPayload: ...

    async def send(
        self, sender: str, receiver: str, text: KeptPayload, **options: Unpack[WireOptions]
    ) -> Reply: ...


async def fan_out(
    runtime: KeepAndSend,
    deployment: Deployment,
    sender: str,
    receivers: Receivers,
    text: str,
    options: WireOptions,
) -> dict[str, Outcome]:
    """As ``Runtime.fan_out``."""
    by_receiver = _options_by_receiver(receivers, options)
    _check_same_bridge(deployment, sender, list(by_receiver))
    loop = asyncio.get_running_loop()
    end = loop.time() + check_deadline(options.get("deadline"), deployment.deadline_s)

    async def send(kept: KeptPayload, receiver: str) -> Outcome:
        own: WireOptions = {**by_receiver[receiver]}
        limit, left = own.get("deadline"), end - loop.time()
        own["deadline"] = max(1e-3, left if limit is None else min(limit, left))
        try:
            return await runtime.send(sender, receiver, replace(kept, receiver=receiver), **own)
        except RequestError as error:
            return error

    async def attempt(left: list[str]) -> dict[str, Outcome]:
        try:
            kept = await runtime.keep(
                sender,
                left[0],
                text,
                bridge=options.get("bridge"),
                fallback=options.get("fallback"),
                channel=options.get("channel"),
                deadline=max(1e-3, end - loop.time()),
            )
        except RequestError as error:
            return dict.fromkeys(left, error)
        answers = await asyncio.gather(*(send(kept, receiver) for receiver in left))
        return dict(zip(left, answers, strict=True))

    return await _repeat(list(by_receiver), attempt)


def _check_same_bridge(deployment: Deployment, sender: str, receivers: Sequence[str]) -> None:
    bridges = {r: deployment.bridges.get(deployment.wire(sender, r)[0]) for r in receivers}
    first = receivers[0]
    for receiver, bridge in bridges.items():
        if bridge != bridges[first]:
            raise ScenarioError(
                f"{first} and {receiver} cannot read the same payload: wire {sender}->{first} uses "
                f"bridge {bridges[first]}, wire {sender}->{receiver} uses bridge {bridge}.",
                hint="Fan out to receivers of the same model and bridge, or send to each.",
            )


def _options_by_receiver(receivers: Receivers, options: WireOptions) -> dict[str, WireOptions]:
    if isinstance(receivers, str):
        receivers = [receivers]
    if not receivers:
        raise ScenarioError("fan_out has no receivers.", hint="Name at least one receiver.")
    own = receivers if isinstance(receivers, Mapping) else {}
    return {receiver: {**options, **own.get(receiver, {})} for receiver in receivers}


@dataclass(frozen=True, slots=True)
class FanIn:
    """Asks a receiver about rows of several texts, or kept payloads, one for each sender."""

    client: Client
    deployment: Deployment
    wires: Sequence[WireSpec]  # from each sender, in the order in which the receiver reads them
    task: TaskSpec

    async def batch(self, rows: Sequence[SenderTexts], deadline: float | None) -> list[Outcome]:
        """One outcome a row, in order."""
        for row in rows:
            if len(row) != len(self.wires):
                raise ScenarioError(
                    f"{len(row)} texts for {len(self.wires)} senders.",
                    hint=f"Give one for each of {', '.join(w.sender for w in self.wires)}.",
                )
        loop = asyncio.get_running_loop()
        end = loop.time() + check_deadline(deadline, self.deployment.deadline_s)
        outcomes = await _repeat(
            list(range(len(rows))), lambda left: self._attempt({i: rows[i] for i in left}, end)
        )
        return list(outcomes.values())

    async def _attempt(self, rows: Mapping[int, SenderTexts], end: float) -> dict[int, Outcome]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        outcomes: dict[int, Outcome] = {}
        held: dict[int, list[Reply]] = {}
        for i, payloads in (await self._hold(rows, end)).items():
            error = next((p for p in payloads if isinstance(p, RequestError)), None)
            if error is not None:
                outcomes[i] = error
            else:
                held[i] = [p for p in payloads if isinstance(p, Reply)]
        if not held:
            return outcomes
        answers = await self._submit(
            direct_wire(self.wires[0].receiver),
            [" ".join(payload.request_id for payload in payloads) for payloads in held.values()],
            replace(self.task, form="kept"),
            end,
            via=[self._process(payloads[0], 1) for payloads in held.values()],
        )
        ms = (loop.time() - begun) * 1000
        for (i, replies), answer in zip(held.items(), answers, strict=True):
            outcomes[i] = answer
            if isinstance(answer, Reply):
                outcomes[i] = self._combine(replies, answer, ms)
        return outcomes

    async def _hold(self, rows: Mapping[int, SenderTexts], end: float) -> dict[int, list[Outcome]]:
        """Makes every sender read, and one process of the receiver hold all payloads of a row."""

        async def read(position: int, holders: Sequence[str]) -> list[Outcome]:
            wire, texts = self.wires[position], [row[position] for row in rows.values()]
            contents, mode, keepers = row_contents(wire.sender, wire.receiver, texts)
            ends = zip(keepers or [""] * len(texts), holders, strict=True)
            via = [self._route(wire.name, keeper, holder) for keeper, holder in ends]
            return await self._submit(wire.name, contents, KEEP, end, mode=mode, via=via)

        anywhere = [""] * len(rows)
        if len(self.deployment.processes_of(self.wires[0].receiver)) == 1:
            held = await asyncio.gather(*(read(i, anywhere) for i in range(len(self.wires))))
        else:  # the other payloads must go to the replica that has the first one
            first = await read(0, anywhere)
            holders = [self._process(o, 1) if isinstance(o, Reply) else "" for o in first]
            others = (read(i, holders) for i in range(1, len(self.wires)))
            held = [first, *await asyncio.gather(*others)]
        return {i: list(payloads) for i, *payloads in zip(rows, *held, strict=True)}

    def _route(self, wire: str, sender: str, receiver: str) -> str:
        """``Request.via`` for a row from and to these processes ("" for any)."""
        if not (sender and receiver):
            return sender or receiver
        routes = self.deployment.routes[wire].items()
        return next(route for route, ends in routes if ends == (sender, receiver))

    async def _submit(
        self,
        wire: str,
        texts: Sequence[str],
        task: TaskSpec,
        end: float,
        *,
        mode: Mode = Mode.FORWARD,
        via: Sequence[str],
    ) -> list[Outcome]:
        """Submits soft requests; a refused admission becomes the outcome of every row."""
        try:
            return await self.client.submit(
                wire,
                task,
                texts,
                channel=Channel.SOFT,
                fallback="error",
                deadline_s=max(1e-3, end - asyncio.get_running_loop().time()),
                mode=mode,
                via=via,
            )
        except RequestError as error:
            return [error] * len(texts)

    def _process(self, payload: Reply, end: int) -> str:
        """The process that a payload came from (0) or went to (1)."""
        routes = self.deployment.routes
        wire = next(wire.name for wire in self.wires if payload.route in routes[wire.name])
        return routes[wire][payload.route][end]

    def _combine(self, payloads: Sequence[Reply], answer: Reply, ms: float) -> Reply:
        """The answer, with the cost of all steps; the senders worked in parallel."""
        slowest = max(payloads, key=lambda payload: payload.latency_ms)
        stages = {stage: spent for stage, spent in slowest.stages.items() if stage != "wire"}
        for stage, spent in answer.stages.items():
            if stage != "wire":
                stages[stage] = stages.get(stage, 0.0) + spent
        stages["wire"] = ms - sum(stages.values())
        senders = "+".join(self._process(payload, 0) for payload in payloads)
        return replace(
            answer,
            stages=stages,
            latency_ms=ms,
            payload_bytes=sum(payload.payload_bytes for payload in payloads),
            soft_tokens=sum(payload.soft_tokens for payload in payloads),
            route=f"{senders}->{self._process(payloads[0], 1)}",
        )


async def _repeat(
    keys: Sequence[K], attempt: Callable[[list[K]], Awaitable[dict[K, Outcome]]]
) -> dict[K, Outcome]:
    """Outcomes by key. Expired payloads died with the agent that had them, so they are retried."""
    outcomes: dict[K, Outcome] = {}
    left = list(keys)
    for _ in range(MAX_READS):
        outcomes |= await attempt(left) if left else {}
        left = [key for key in left if _is_expired(outcomes[key])]
    return {key: outcomes[key] for key in keys}


def _is_expired(outcome: Outcome) -> bool:
    return isinstance(outcome, RequestError) and outcome.code is NackCode.EXPIRED
