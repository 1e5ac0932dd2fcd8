"""The runtime of one scenario, as an async context manager.

::

    async with agentwire.open("scenario.yaml") as wire:
        reply = await wire.send("llama", "mistral", "A moving, funny film.")
        print(reply.label, reply.channel, reply.latency_ms)

While this process lives, every request has exactly one outcome: a ``Reply`` or a ``RequestError``.
An agent that dies is started again, and its unanswered requests are sent again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

from prometheus_client import CollectorRegistry

from agentwire.agent.launching.limits import AgentLimits
from agentwire.agent.launching.placement import Remote
from agentwire.errors import AgentwireError, RequestError, ScenarioError
from agentwire.runtime.call_options import (
    KEEP,
    CallOptions,
    ChannelName,
    Fallback,
    Generate,
    KeepOptions,
    RelayMode,
    TextForm,
    WireOptions,
    check_deadline,
    make_task,
    parse_request_ids,
    row_contents,
    row_questions,
    with_question,
)
from agentwire.runtime.client import Client
from agentwire.runtime.deadletters import DeadLetter
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.ledger import Admission
from agentwire.runtime.lifecycle import Lifecycle
from agentwire.runtime.pending import EventLog, Outcome, replies_of
from agentwire.runtime.reply import AgentInfo, KeptPayload, ProgressEvent, Reply
from agentwire.runtime.stream import stream_answer
from agentwire.runtime.topology import FanIn, Receivers, SenderTexts, fan_out
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.scenario import Scenario
from agentwire.wire.messages import Channel, Mode, direct_wire
from agentwire.wire.session import Timing


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
        strict: refuse stand-in models and data.
        run_folder, progress: as for ``Runtime``.

    Raises:
        InputError: the scenario is invalid, or cannot run on this machine.
    """
    source = None if isinstance(scenario, Scenario) else Path(scenario)
    loaded = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    resolved = resolve(loaded, source=source, strict=strict)
    return Runtime(resolved, run_folder=run_folder, progress=progress)


class Runtime:
    """The agents of a scenario, and calls to them. Use it in ``async with``, or call ``start`` and
    ``aclose``: both in the same event loop, but not necessarily in the same task.

    Args:
        target: a resolved scenario, or a deployment built in Python.
        run_folder: keeps the journal and the agents' logs; by default they are discarded.
        journal: receives events; default: ``journal.jsonl`` in ``run_folder``, if there is one.
        progress: called in the event loop while agents start.
        limits: how long agents may take, and how often they may die.
        timing: heartbeats of the bus.
        admission: limits on outstanding requests; more are refused as overloaded.
        remote: agents that run on other machines (``agentwire agent``), and where they connect.
        record: record the bus's input for ``agentwire replay``; doubles the broker's work.
    """

    def __init__(
        self,
        target: Resolved | Deployment,
        *,
        run_folder: Path | None = None,
        journal: EventLog | None = None,
        progress: Callable[[ProgressEvent], None] | None = None,
        limits: AgentLimits | None = None,
        timing: Timing | None = None,
        admission: Admission | None = None,
        remote: Remote | None = None,
        record: bool = False,
    ) -> None:
        progress = progress or (lambda event: None)
        self._lifecycle = Lifecycle(
            target, run_folder, journal, progress, limits, timing, admission, remote, record
        )

    # -- lifecycle --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Starts bus and agents; returns when every agent has loaded its model.

        Raises:
            InputError: an agent cannot start for a reason that the user can fix.
            AgentwireError: an agent does not start, or the runtime was started before.
        """
        await self._lifecycle.start()

    async def aclose(self, *, drain_s: float = 0.0) -> None:
        """Ends outstanding requests with CLOSING, then agents and bus. Safe to call twice.

        For ``drain_s`` seconds, outstanding requests may still end; new ones raise BusClosed.
        """
        await self._lifecycle.aclose(drain_s)

    @property
    def agents(self) -> Mapping[str, AgentInfo]:
        """The latest incarnation of each agent that was ever ready, one entry for each replica."""
        return dict(self._lifecycle.agents)

    @property
    def remote_endpoint(self) -> str:
        """Where agents of other machines connect; "" if there are none, or before the start."""
        return self._lifecycle.remote_endpoint

    def invitation(self) -> dict[str, str]:
        """What a client in another process needs to join (docs/protocol.md): ``endpoint``,
        ``run`` and ``token``. Whoever has it may send requests, so pass it on in secret; {} before
        the start.
        """
        return self._lifecycle.invitation()

    @property
    def registry(self) -> CollectorRegistry:
        """All metrics of this runtime and its bus, for Prometheus."""
        return self._lifecycle.metrics.registry

    def metrics(self) -> Mapping[str, int]:
        """Counters and gauges of the bus (``Broker.metrics``)."""
        return self._lifecycle.bus_metrics()

    def status(self) -> Mapping[str, Any]:
        """Agents, outcomes, fallbacks, restarts, stages and credits; {} before the start."""
        return self._lifecycle.status()

    @property
    def _client(self) -> Client:
        if self._lifecycle.client is None:
            raise AgentwireError(
                "The runtime has not been started.", hint="Use `async with`, or call start()."
            )
        return self._lifecycle.client

    # -- calls over a wire ------------------------------------------------------------------

    async def send(
        self,
        sender: str,
        receiver: str,
        text: str | KeptPayload,
        *,
        prompt: str | None = None,
        question: str | Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        generate: Generate | None = None,
        bridge: str | None = None,
        deadline: float | None = None,
        fallback: Fallback | None = None,
        request_id: str | None = None,
        channel: ChannelName | None = None,
        relay: RelayMode | None = None,
        form: TextForm | None = None,
    ) -> Reply:
        """Sends one text from one agent to another and waits for the answer.

        Args:
            sender: the agent that reads the text.
            receiver: the agent that answers.
            text: a text, or a payload that the sender keeps (``keep``).
            prompt: the question to the receiver; default: the scenario's task. If the wire's bridge
                answers any question (``answers: free``), it is put into the prompt of its card.
            question: replaces ``{question}`` in the prompt. Calls that differ in it share a task.
            labels: the words that the answer is chosen from.
            generate: the length limit of a free-text answer, or all its options. Bridges trained
                for label words do not support free text: the message goes as text, with the reason
                ``unsupported``, or is refused (``fallback``).
            bridge: the expected name of the wire's bridge; another bridge is an error.
            deadline: in seconds; default: the scenario's ``deadline_s``.
            fallback: ``text`` or ``error`` if soft tokens are not possible; default: the wire's.
            request_id: 32 hex digits. A repeated call with the same id and text is not computed
                again: it gets the outcome of the first one.
            channel: default ``soft``.
            relay: ``verbatim`` relays the text itself over the text channel, not a summary.
            form: how the receiver reads a text: ``text`` (default), ``plain`` (without chat
                template) or ``chat`` (a JSON array of role and content).

        Raises:
            RequestError: the request ended without an answer; ``code`` is the cause.
            ScenarioError: no such agent or wire, or there is no prompt and no task.
            BusClosed: the runtime is closed.
        """
        options: WireOptions = {
            "prompt": prompt,
            "question": question,
            "labels": labels,
            "generate": generate,
            "bridge": bridge,
            "deadline": deadline,
            "fallback": fallback,
            "channel": channel,
            "relay": relay,
            "form": form,
        }
        ids = None if request_id is None else [request_id]
        return replies_of(await self._send(sender, receiver, [text], options, request_ids=ids))[0]

    async def send_batch(
        self,
        sender: str,
        receiver: str,
        texts: Sequence[str | KeptPayload],
        *,
        request_ids: Sequence[str] | None = None,
        **options: Unpack[WireOptions],
    ) -> list[Outcome]:
        """As ``send`` for texts that share messages: one outcome each, in order.

        ``question`` may be a list with one for each text.

        The outcome of a text without an answer is a RequestError. It is raised instead if nothing
        was admitted, because an agent is down or too much is outstanding.
        """
        return await self._send(sender, receiver, texts, options, request_ids=request_ids)

    async def _send(
        self,
        sender: str,
        receiver: str,
        texts: Sequence[str | KeptPayload],
        options: WireOptions,
        *,
        request_ids: Sequence[str] | None = None,
        on_piece: Callable[[int, str], None] | None = None,
    ) -> list[Outcome]:
        deployment = self._lifecycle.deployment
        contents, mode, via = row_contents(sender, receiver, texts)
        passages = [text.text for text in texts if isinstance(text, KeptPayload)]
        name, wire = deployment.wire(sender, receiver, options.get("bridge"))
        options = with_question(options, deployment.reader(name))
        stream = on_piece is not None
        task = make_task(deployment.task, options, options.get("relay"), stream=stream)
        outcomes = await self._client.submit(
            name,
            task,
            contents,
            channel=Channel(options.get("channel") or Channel.SOFT),
            fallback=options.get("fallback") or wire.fallback,
            deadline_s=check_deadline(options.get("deadline"), deployment.deadline_s),
            request_ids=parse_request_ids(request_ids, len(texts)),
            mode=mode,
            via=via,
            questions=row_questions(options.get("question"), task, len(texts)),
            on_piece=on_piece,
        )
        if not passages:
            return outcomes
        return [
            replace(outcome, passage=passage) if isinstance(outcome, Reply) else outcome
            for outcome, passage in zip(outcomes, passages, strict=True)
        ]

    async def send_many(
        self,
        sender: str,
        receiver: str,
        texts: Iterable[str],
        *,
        batch_size: int | None = None,
        in_flight: int | None = None,
        **options: Unpack[WireOptions],
    ) -> AsyncIterator[list[Outcome]]:
        """As ``send_batch`` for many texts: yields the outcomes of each batch, in order.

        ``question`` may be a list with one for each text.

        Closing the iterator early (``contextlib.aclosing``) cancels the outstanding requests.

        Args:
            batch_size: texts of one message; default: the scenario's.
            in_flight: messages that may be outstanding; default: the scenario's.
        """
        rest, size = iter(texts), batch_size or self._lifecycle.deployment.batch_size
        most = in_flight or self._lifecycle.deployment.in_flight
        tasks: deque[asyncio.Task[list[Outcome]]] = deque()
        question, sent = options.get("question"), 0
        try:
            while batch := list(itertools.islice(rest, size)):
                if question is not None and not isinstance(question, str):
                    options["question"] = question[sent : sent + len(batch)]
                sent += len(batch)
                call = self.send_batch(sender, receiver, batch, **options)
                tasks.append(asyncio.create_task(call))
                while len(tasks) >= most:
                    yield await tasks[0]
                    tasks.popleft()
            while tasks:
                yield await tasks[0]
                tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def keep(
        self,
        sender: str,
        receiver: str,
        text: str,
        *,
        owner: str = "",
        **options: Unpack[KeepOptions],
    ) -> KeptPayload:
        """Makes the sender read a text and keep its soft tokens for later calls.

        Pass the result to ``send`` in place of a text, any number of times. On a wire that several
        senders share, pass it to ``fan_in``; nothing goes as text there. Errors as for ``send``.
        When the sender's store is full, the ``owner`` that takes the most room loses its oldest.
        """
        deployment = self._lifecycle.deployment
        name, wire = deployment.wire(sender, receiver, options.get("bridge"))
        channel = Channel(options.get("channel") or Channel.SOFT)
        fallback = options.get("fallback") or wire.fallback
        if wire.joint:
            channel, fallback = Channel.SOFT, "error"
        outcomes = await self._client.submit(
            name,
            replace(KEEP, name=f"{KEEP.name}:{owner}") if owner else KEEP,
            [text],
            channel=channel,
            fallback=fallback,
            deadline_s=check_deadline(options.get("deadline"), deployment.deadline_s),
            mode=Mode.KEEP,
        )
        kept = replies_of(outcomes)[0]
        return KeptPayload(
            sender,
            receiver,
            kept.request_id,
            kept.channel,
            kept.reason,
            kept.payload_bytes,
            kept.latency_ms,
            deployment.routes[name][kept.route][0],
            kept.soft_tokens,
            text,
        )

    def stream(
        self,
        sender: str,
        receiver: str,
        text: str | KeptPayload,
        **options: Unpack[WireOptions],
    ) -> AsyncIterator[str | Reply]:
        """As ``send`` for a free-text answer: yields its pieces as they come, then the reply.

        Closing the iterator early (``contextlib.aclosing``) cancels the request. Labels are not
        streamed. Errors as for ``send``; also a RequestError if an agent died and its second answer
        differs from the text already streamed.
        """
        return stream_answer(
            lambda on_piece: self._send(sender, receiver, [text], options, on_piece=on_piece)
        )

    async def fan_out(
        self, sender: str, receivers: Receivers, text: str, **options: Unpack[WireOptions]
    ) -> dict[str, Outcome]:
        """Sends one text, which the sender reads once, to several receivers.

        Their wires must have the same bridge. If soft tokens are not possible, each gets the text
        as ``send`` would relay it.

        Args:
            receivers: their names, or a mapping of names to options that override ``options``.
            options: as for ``send``; the deadline is for all receivers together.

        Returns:
            Receiver -> its outcome.

        Raises:
            ScenarioError: as for ``send``; or the wires' bridges differ.
            BusClosed: the runtime is closed.
        """
        return await fan_out(self, self._lifecycle.deployment, sender, receivers, text, options)

    async def fan_in(
        self,
        texts: Mapping[str, str | KeptPayload],
        receiver: str,
        **options: Unpack[WireOptions],
    ) -> Reply:
        """Sends the texts of several senders to one receiver, which answers one question on all.

        The senders' bridges must have been trained together, in the order of the scenario's wire
        (``from: [a, b]``). Nothing goes as text.

        Args:
            texts: sender -> a text, or a payload that it keeps for the receiver.
            options: as for ``send``; ``bridge``, ``channel`` and ``fallback`` are ignored.

        Raises:
            RequestError, BusClosed: as for ``send``.
            ScenarioError: there is no such joint wire, or its bridges are missing.
        """
        senders = self._lifecycle.deployment.joint_order(list(texts), receiver)
        rows = [[texts[sender] for sender in senders]]
        return replies_of(await self.fan_in_batch(senders, receiver, rows, **options))[0]

    async def fan_in_batch(
        self,
        senders: Sequence[str],
        receiver: str,
        rows: Sequence[SenderTexts],
        **options: Unpack[WireOptions],
    ) -> list[Outcome]:
        """As ``fan_in`` for rows that share messages; one outcome a row, in order.

        Args:
            rows: of each a text, or a kept payload, for every sender in the wire's order. A sender
                cannot have texts in some rows and kept payloads in others.
        """
        deployment = self._lifecycle.deployment
        wires = deployment.joint(senders, receiver)
        task = make_task(deployment.task, options)
        if row_questions(options.get("question"), task, len(rows)) is not None:
            raise ScenarioError(
                "fan_in takes no question.", hint="Write the question into the prompt."
            )
        fan_in = FanIn(self._client, deployment, wires, task)
        return await fan_in.batch(rows, options.get("deadline"))

    # -- calls to one agent -----------------------------------------------------------------

    async def direct(
        self,
        agent: str,
        text: str,
        *,
        request_id: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Reply:
        """Asks one agent about a text that it reads itself. Otherwise as ``send``."""
        ids = None if request_id is None else [request_id]
        return replies_of(await self.direct_batch(agent, [text], request_ids=ids, **options))[0]

    async def direct_batch(
        self,
        agent: str,
        texts: Sequence[str],
        *,
        request_ids: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Outcome]:
        """As ``direct`` for texts that share messages; outcomes as in ``send_batch``."""
        return await self._direct(agent, texts, options, request_ids=request_ids)

    def direct_stream(
        self, agent: str, text: str, **options: Unpack[CallOptions]
    ) -> AsyncIterator[str | Reply]:
        """As ``direct``, streamed as by ``stream``."""
        return stream_answer(
            lambda on_piece: self._direct(agent, [text], options, on_piece=on_piece)
        )

    async def _direct(
        self,
        agent: str,
        texts: Sequence[str],
        options: CallOptions,
        *,
        request_ids: Sequence[str] | None = None,
        on_piece: Callable[[int, str], None] | None = None,
    ) -> list[Outcome]:
        deployment = self._lifecycle.deployment
        deployment.check_agent(agent)
        task = make_task(deployment.task, options, stream=on_piece is not None)
        return await self._client.submit(
            direct_wire(agent),
            task,
            texts,
            channel=Channel.TEXT,
            fallback="error",
            deadline_s=check_deadline(options.get("deadline"), deployment.deadline_s),
            request_ids=parse_request_ids(request_ids, len(texts)),
            questions=row_questions(options.get("question"), task, len(texts)),
            on_piece=on_piece,
        )

    # -- requests ---------------------------------------------------------------------------

    async def resend(self, letter: DeadLetter, *, deadline: float | None = None) -> Outcome:
        """Sends a dead letter again under its id, so that an existing answer is not recomputed."""
        deployment = self._lifecycle.deployment
        wires = deployment.agents_by_wire
        if letter.wire not in wires:
            raise ScenarioError(
                f"There is no wire {letter.wire} in this scenario.",
                hint=f"Wires: {', '.join(wires)}.",
            )
        try:
            (outcome,) = await self._client.submit(
                letter.wire,
                letter.task,
                [letter.text],
                channel=letter.channel,
                fallback=letter.fallback,
                deadline_s=check_deadline(deadline, deployment.deadline_s),
                request_ids=parse_request_ids([letter.request_id], 1),
                mode=letter.mode,
                questions=[letter.question],
            )
        except RequestError as error:
            return error
        return outcome
