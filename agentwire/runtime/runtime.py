"""The runtime: agents, bus and client of one scenario, as one async context manager.

::

    async with agentwire.open("scenario.yaml") as wire:
        reply = await wire.send("llama", "mistral", "A moving, funny film.")
        print(reply.label, reply.channel, reply.latency_ms)

Every request has exactly one outcome, a ``Reply`` or a ``RequestError``, while this process lives:
an agent that dies is started again, and what it had not answered is sent again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from agentwire.agent.launching.limits import AgentLimits
from agentwire.runtime.call_options import (
    KEEP,
    CallOptions,
    ChannelName,
    Fallback,
    Form,
    Generate,
    GenerationOptions,
    KeepOptions,
    Relay,
    WireOptions,
    check_deadline,
    make_task,
    names_of,
    only,
    over_wire,
    parse_request_ids,
    processes_for,
)
from agentwire.runtime.deadletters import DeadLetter, ask_again
from agentwire.runtime.dispatch import batches_of, in_order
from agentwire.runtime.fan_in import FanIn
from agentwire.runtime.fan_out import Receivers, fan_out
from agentwire.runtime.pending import Outcome, answered
from agentwire.runtime.reply import AgentInfo, KeptPayload, ProgressEvent, Reply
from agentwire.runtime.running import Running
from agentwire.runtime.stream import streamed
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import Scenario
from agentwire.wire.messages import Channel, Mode, TaskSpec, direct_wire

if TYPE_CHECKING:
    pass

__all__ = [
    "AgentInfo",
    "AgentLimits",
    "GenerationOptions",
    "KeptPayload",
    "Outcome",
    "ProgressEvent",
    "Reply",
    "Runtime",
    "open",
]


def open(
    scenario: str | Path | Scenario,
    *,
    run_folder: Path | None = None,
    strict: bool = False,
    progress: Callable[[ProgressEvent], None] | None = None,
) -> Runtime:
    """A runtime for a scenario; ``async with`` starts it.

    Args:
        scenario: a YAML file, or a Scenario built in Python.
        run_folder: where the journal and the agents' logs go; default: nowhere that stays.
        strict: refuse models and data that stand in for others.
        progress: called in the event loop with news of agents while they start.

    Raises:
        InputError: the scenario is wrong, or cannot run here (each says what to do).
    """
    source = None if isinstance(scenario, Scenario) else Path(scenario)
    loaded = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    resolved = resolve(loaded, source=source, strict=strict)
    return Runtime(resolved, run_folder=run_folder, progress=progress)


class Runtime(Running):
    """Running agents (``Running`` says how they are started and ended), and calls to them."""

    async def send(
        self,
        sender: str,
        receiver: str,
        text: str | KeptPayload,
        *,
        prompt: str | None = None,
        labels: Sequence[str] | None = None,
        generate: Generate | None = None,
        bridge: str | None = None,
        deadline: float | None = None,
        fallback: Fallback | None = None,
        request_id: str | None = None,
        channel: ChannelName | None = None,
        relay: Relay | None = None,
        form: Form | None = None,
    ) -> Reply:
        """Hands one text from one agent to another and waits for the answer.

        Args:
            sender: agent that reads the text.
            receiver: agent that answers.
            text: what the sender reads, or what it has read and kept (``keep``).
            prompt: what the receiver is asked; default: the scenario's task.
            labels: the answer is one of these words.
            generate: the answer is free text of at most so many tokens, or as the options say. A
                bridge that was trained for label words cannot carry that: it goes as text with
                the reason ``unsupported``, or is refused, as ``fallback`` says.
            bridge: name of the wire's bridge, to be sure that it is the one.
            deadline: seconds; default: the scenario's ``deadline_s``.
            fallback: where soft tokens cannot be had: relay as ``text``, or ``error``; default:
                the wire's.
            request_id: 32 hex digits; asked again with the same id (and text), a request is not
                computed again: the call waits for the first one, or gets its reply.
            channel: default ``soft``.
            relay: ``verbatim``: a text message is the text itself, not what the sender writes.
            form: what a text message is to the receiver: ``text`` (default), ``plain`` (without
                chat template) or ``chat`` (a JSON array of role and content).

        Raises:
            RequestError: the request ended without an answer; ``code`` says why.
            ScenarioError: no such agent or wire, or nothing says what is asked.
            BusClosed: the runtime is closed.
        """
        outcomes = await self.send_batch(
            sender,
            receiver,
            [text],
            request_ids=only(request_id),
            prompt=prompt,
            labels=labels,
            generate=generate,
            bridge=bridge,
            deadline=deadline,
            fallback=fallback,
            channel=channel,
            relay=relay,
            form=form,
        )
        return answered(outcomes)[0]

    async def send_batch(
        self,
        sender: str,
        receiver: str,
        texts: Sequence[str | KeptPayload],
        *,
        request_ids: Sequence[str] | None = None,
        **question: Unpack[WireOptions],
    ) -> list[Outcome]:
        """As ``send`` for texts that travel together: one outcome each, in order.

        A row that has no answer does not hide the others: its outcome is a RequestError.

        Args:
            request_ids: one for each text.
            question: as for ``send``.

        Raises:
            RequestError: nothing was admitted (an agent is down, or too much is outstanding).
            ScenarioError, BusClosed: as for ``send``.
        """
        names, mode = names_of(sender, receiver, texts)
        wire, channel, fallback = self._over(sender, receiver, question)
        task = self._task(question, question.get("relay"))
        return await self._ask(
            wire,
            names,
            channel,
            fallback,
            task,
            question,
            request_ids=request_ids,
            mode=mode,
            via=processes_for(texts),
        )

    def _over(
        self, sender: str, receiver: str, question: WireOptions
    ) -> tuple[str, Channel, Fallback]:
        wire = self._deployment.wire(sender, receiver)
        self._deployment.check_bridge(wire.name, question.get("bridge"))
        channel = Channel(question.get("channel") or Channel.SOFT)
        return wire.name, channel, question.get("fallback") or wire.fallback

    async def send_many(
        self,
        sender: str,
        receiver: str,
        texts: Iterable[str],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        **question: Unpack[WireOptions],
    ) -> AsyncIterator[list[Reply]]:
        """As ``send`` for many texts: yields batches of replies, in order.

        Leaving the loop early cancels what is outstanding (close the iterator, as
        ``contextlib.aclosing`` does).

        Args:
            batch_size: texts of one message; default: the scenario's.
            in_flight: messages that may be outstanding; default: the scenario's.
            question: as for ``send``.

        Raises:
            RequestError: of the first text that has no answer. ``send_batch`` gives each row's.
            ScenarioError, BusClosed: as for ``send``.
        """
        most = in_flight or self._deployment.in_flight
        calls = (
            self.send_batch(sender, receiver, batch, **question)
            for batch in batches_of(texts, batch_size or self._deployment.batch_size)
        )
        async with contextlib.aclosing(in_order(calls, most)) as batches:
            async for outcomes in batches:
                yield answered(outcomes)

    async def keep(
        self, sender: str, receiver: str, text: str, **question: Unpack[KeepOptions]
    ) -> KeptPayload:
        """Lets the sender read a text and keep its soft tokens for questions that come later.

        Give the result to ``send`` in the place of a text, as often as you like; over a wire that
        several senders share, to ``fan_in``, where nothing goes as text. Errors as there.
        """
        over, asked = over_wire(question)
        wire, channel, fallback = self._over(sender, receiver, over)
        if self._deployment.wires[wire].joint:
            channel, fallback = Channel.SOFT, "error"
        outcomes = await self._ask(wire, [text], channel, fallback, KEEP, asked, mode=Mode.KEEP)
        kept = answered(outcomes)[0]
        return KeptPayload(
            sender,
            receiver,
            kept.request_id,
            kept.channel,
            kept.reason,
            kept.payload_bytes,
            kept.latency_ms,
            self._deployment.routes[wire][kept.route][0],
        )

    async def fan_out(
        self, sender: str, receivers: Receivers, text: str, **question: Unpack[WireOptions]
    ) -> dict[str, Outcome]:
        """Hands one text, which the sender reads once, to several receivers.

        Their wires must have the same bridge. Where no soft tokens can be had, each gets the text
        as ``send`` would relay it.

        Args:
            receivers: their names; or for each what it is asked, over what ``question`` says.
            question: what all are asked, as for ``send``; the deadline is for all together.

        Returns:
            Receiver -> its reply, or the RequestError that it ended with.

        Raises:
            ScenarioError: as for ``send``; or the wires' bridges differ.
            BusClosed: the runtime is closed.
        """
        return await fan_out(self, self._deployment, sender, receivers, text, question)

    async def fan_in(
        self,
        texts: Mapping[str, str | KeptPayload],
        receiver: str,
        **question: Unpack[WireOptions],
    ) -> Reply:
        """Hands the receiver what several senders have read, in one question.

        Their bridges must have been trained together, in the order of the scenario's wire
        (``from: [a, b]``): soft tokens of other bridges are refused, and nothing goes as text.

        Args:
            texts: what each sender reads, or has kept for the receiver, by name.
            question: as for ``send``; ``bridge``, ``channel`` and ``fallback`` say nothing here.

        Raises:
            RequestError, BusClosed: as for ``send``.
            ScenarioError: no wire joins these senders to the receiver, or its bridges are not here.
        """
        declared = self._deployment.joint_order(list(texts), receiver)
        rows = [[texts[sender] for sender in declared]]
        return answered(await self.fan_in_batch(declared, receiver, rows, **question))[0]

    async def fan_in_batch(
        self,
        senders: Sequence[str],
        receiver: str,
        rows: Sequence[Sequence[str | KeptPayload]],
        **question: Unpack[WireOptions],
    ) -> list[Outcome]:
        """As ``fan_in`` for rows that travel together: of each a text for every sender, in the
        order of the wire; one outcome a row, in order.

        What is kept cannot be mixed with texts of the same sender.
        """
        parts = self._deployment.joint(senders, receiver)
        return await FanIn(self._ask, self._deployment, parts, self._task(question)).batch(
            rows, question
        )

    async def stream(
        self,
        sender: str,
        receiver: str,
        text: str | KeptPayload,
        **question: Unpack[WireOptions],
    ) -> AsyncIterator[str | Reply]:
        """As ``send`` for an answer in free text: yields its pieces as they come, then the reply.

        Leaving the loop early cancels the request (close the iterator, as ``contextlib.aclosing``
        does). An answer that cannot be streamed (a label) comes as the reply alone.

        Raises:
            RequestError: as for ``send``; or the answer was generated again after an agent died,
                and went on differently.
            ScenarioError, BusClosed: as for ``send``.
        """
        names, mode = names_of(sender, receiver, [text])
        wire, channel, fallback = self._over(sender, receiver, question)
        task = self._task(question, question.get("relay"), stream=True)
        ask = functools.partial(
            self._ask, wire, names, channel, fallback, task, question, mode=mode
        )
        pieces = streamed(lambda tell: ask(via=processes_for([text]), on_piece=tell))
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def direct_stream(
        self, agent: str, text: str, **question: Unpack[CallOptions]
    ) -> AsyncIterator[str | Reply]:
        """As ``direct``, streamed as in ``stream``."""
        self._deployment.check_agent(agent)
        task = self._task(question, stream=True)
        ask = functools.partial(
            self._ask, direct_wire(agent), [text], Channel.TEXT, "error", task, question
        )
        pieces = streamed(lambda tell: ask(on_piece=tell))
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def direct(
        self,
        agent: str,
        text: str,
        *,
        request_id: str | None = None,
        **question: Unpack[CallOptions],
    ) -> Reply:
        """Asks one agent about a text that it reads itself. Arguments and errors as ``send``."""
        ids = only(request_id)
        return answered(await self.direct_batch(agent, [text], request_ids=ids, **question))[0]

    async def direct_batch(
        self,
        agent: str,
        texts: Sequence[str],
        *,
        request_ids: Sequence[str] | None = None,
        **question: Unpack[CallOptions],
    ) -> list[Outcome]:
        """As ``direct`` for texts that travel together; outcomes as in ``send_batch``."""
        self._deployment.check_agent(agent)
        wire, task = direct_wire(agent), self._task(question)
        return await self._ask(
            wire, texts, Channel.TEXT, "error", task, question, request_ids=request_ids
        )

    def _task(
        self, question: CallOptions, relay: Relay | None = None, *, stream: bool = False
    ) -> TaskSpec:
        return make_task(
            self._deployment.task,
            prompt=question.get("prompt"),
            labels=question.get("labels"),
            generate=question.get("generate"),
            relay=relay,
            form=question.get("form"),
            stream=stream,
        )

    async def resend(self, letter: DeadLetter, *, deadline: float | None = None) -> Outcome:
        """Asks a dead letter again, by its id: an answer that is there is not computed again.

        Raises:
            ScenarioError: this scenario has no such wire.
            BusClosed: the runtime is closed.
        """
        return await ask_again(self._ask, self._deployment.wires_of_agents, letter, deadline)

    async def _ask(
        self,
        wire: str,
        texts: Sequence[str],
        channel: Channel,
        fallback: Fallback,
        task: TaskSpec,
        question: CallOptions,
        *,
        request_ids: Sequence[str] | None = None,
        mode: Mode = Mode.FORWARD,
        via: Sequence[str] | None = None,
        on_piece: Callable[[int, str], None] | None = None,
    ) -> list[Outcome]:
        client = self._client
        deadline_s = check_deadline(question.get("deadline"), self._deployment.deadline_s)
        ids = parse_request_ids(request_ids, len(texts))
        if not texts:
            return []
        return await client.ask(
            wire,
            task,
            texts,
            channel=channel,
            fallback=fallback,
            deadline_s=deadline_s,
            request_ids=ids,
            mode=mode,
            via=via,
            on_piece=on_piece,
        )
