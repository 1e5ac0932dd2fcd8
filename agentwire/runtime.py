"""The runtime: agents, bus and client of one scenario, as one async context manager.

::

    async with agentwire.open("scenario.yaml") as wire:
        reply = await wire.send("llama", "mistral", "A moving, funny film.")
        print(reply.label, reply.channel, reply.latency_ms)

Every request has exactly one outcome, a ``Reply`` or a ``RequestError``, while this process lives:
an agent that dies is started again, and what it had not answered is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import anyio

from agentwire.agent.lifecycle import (
    AgentDied,
    AgentDown,
    AgentEvent,
    AgentLimits,
    AgentLoading,
    AgentReady,
    AgentStarted,
)
from agentwire.agent.spec import BusAddress
from agentwire.agent.supervisor import Supervisor
from agentwire.bus.broker import Broker
from agentwire.bus.endpoint import Endpoint
from agentwire.bus.events import BrokerEvent, BrokerFailed, WireAgreed, WireRefused
from agentwire.bus.security import make_run_folder, new_token
from agentwire.client import Client, EventLog, Outcome
from agentwire.errors import AgentwireError, RequestError, ScenarioError
from agentwire.question import make_task
from agentwire.reply import AgentInfo, ProgressEvent, Reply
from agentwire.scenario.fetch import fetch
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.scenario.schema import Scenario
from agentwire.telemetry.journal import Journal
from agentwire.wire.messages import Channel, Hello, Message, Role, TaskSpec, direct_wire
from agentwire.wiring import Wiring

__all__ = [
    "AgentInfo",
    "AgentLimits",
    "Outcome",
    "ProgressEvent",
    "Reply",
    "Runtime",
    "Wiring",
    "open",
]

CLIENT = "client"
Fallback: TypeAlias = Literal["text", "error"]
Relay: TypeAlias = Literal["summary", "verbatim"]


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


class Runtime:
    """Running agents, and calls to them.

    Use it as an async context manager, or ``start`` and ``aclose`` it; both in the same event
    loop (asyncio), though not necessarily in the same task.

    Args:
        what: a resolved scenario, or a wiring built by hand.
        run_folder: as in ``open``.
        journal: told what happens; default: ``journal.jsonl`` in ``run_folder``, if there is one.
        progress: as in ``open``.
        limits: how long agents may take and how often they may die.
    """

    def __init__(
        self,
        what: Resolved | Wiring,
        *,
        run_folder: Path | None = None,
        journal: EventLog | None = None,
        progress: Callable[[ProgressEvent], None] | None = None,
        limits: AgentLimits | None = None,
    ) -> None:
        self._resolved = None if isinstance(what, Wiring) else what
        self._wiring = what if isinstance(what, Wiring) else Wiring.of(what)
        self._run_folder = run_folder
        self._journal = journal
        self._own_journal: Journal | None = None
        self._progress = progress or (lambda event: None)
        self._limits = limits
        self._agents: dict[str, AgentInfo] = {}
        self._bus_folder: Path | None = None
        self._broker: Broker | None = None
        self._client: Client | None = None
        self._supervisor: Supervisor | None = None
        self.run_id = os.urandom(16)

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Starts bus and agents; returns when every agent has loaded its model.

        Raises:
            InputError: an agent cannot start for a reason that the user can mend.
            AgentwireError: an agent does not start; or this runtime was started before.
        """
        if self._bus_folder is not None:
            raise AgentwireError("This runtime was started before.", hint="Open a new one.")
        self._loop = asyncio.get_running_loop()
        self._bus_folder = make_run_folder()
        try:
            await self._start(self._bus_folder)
        except BaseException:
            await self.aclose()
            raise

    async def _start(self, bus_folder: Path) -> None:
        if self._resolved is not None:
            fetched = await asyncio.to_thread(fetch, self._resolved, progress=self._on_fetch)
            self._wiring = Wiring.of(fetched)
        wiring = self._wiring
        folder = self._run_folder or bus_folder
        folder.mkdir(parents=True, exist_ok=True)
        if self._run_folder is not None and self._journal is None:
            self._journal = self._own_journal = Journal(folder / "journal.jsonl")
        token = new_token()
        self._broker = broker = Broker(
            run=self.run_id,
            folder=bus_folder,
            wires=wiring.ends,
            token=token,
            on_event=self._from_broker,
        )
        broker.start()
        address = BusAddress(endpoint=broker.endpoint, run=self.run_id.hex(), epoch=1, token=token)

        def connect(
            on_message: Callable[[Message, float], None], on_lost: Callable[[str], None]
        ) -> Endpoint:
            hello = Hello(CLIENT, Role.CLIENT)
            return Endpoint(address, hello, on_message=on_message, on_lost=on_lost)

        self._client = Client(connect, wiring.routes, self._journal)
        self._client.start()
        self._supervisor = Supervisor(
            wiring.agents,
            broker,
            run=self.run_id,
            token=token,
            logs=folder / "logs",
            on_event=self._on_agent,
            limits=self._limits,
        )
        self._supervisor.start()
        await self._supervisor.ready()

    async def aclose(self) -> None:
        """Ends outstanding requests with CLOSING, then agents and bus. Safe to call twice."""
        supervisor, client, broker = self._supervisor, self._client, self._broker
        self._supervisor = self._broker = None
        with anyio.CancelScope(shield=True):  # an interrupted run must not leave processes behind
            try:
                if client is not None:
                    await client.close("the runtime is closed")
                if supervisor is not None:
                    await supervisor.stop()
            finally:
                if supervisor is not None:
                    supervisor.kill()
                try:
                    if broker is not None:
                        await asyncio.to_thread(broker.stop)
                finally:
                    if self._own_journal is not None:
                        self._own_journal.close()
                    if self._bus_folder is not None:
                        shutil.rmtree(self._bus_folder, ignore_errors=True)

    # -- what runs --------------------------------------------------------------------------

    @property
    def agents(self) -> Mapping[str, AgentInfo]:
        """The latest incarnation of each agent that was ready once."""
        return dict(self._agents)

    def metrics(self) -> Mapping[str, int]:
        """Counters and gauges of the bus (``Broker.metrics``); empty when closed."""
        return {} if self._broker is None else self._broker.metrics()

    # -- calls ------------------------------------------------------------------------------

    async def send(
        self,
        sender: str,
        receiver: str,
        text: str,
        *,
        prompt: str | None = None,
        labels: Sequence[str] | None = None,
        generate: int | None = None,
        bridge: str | None = None,
        deadline: float | None = None,
        fallback: Fallback | None = None,
        request_id: str | None = None,
        channel: Channel | Literal["soft", "text"] | None = None,
        relay: Relay | None = None,
    ) -> Reply:
        """Hands one text from one agent to another and waits for the answer.

        Args:
            sender: agent that reads the text.
            receiver: agent that answers.
            prompt: what the receiver is asked; default: the scenario's task.
            labels: the answer is one of these words.
            generate: the answer is free text of at most so many tokens.
            bridge: name of the wire's bridge, to be sure that it is the one.
            deadline: seconds; default: the scenario's ``deadline_s``.
            fallback: where soft tokens cannot be had: relay as ``text``, or ``error``; default:
                the wire's.
            request_id: 32 hex digits; asked again with the same id (and text), a request is not
                computed again: the call waits for the first one, or gets its reply.
            channel: default ``soft``.
            relay: ``verbatim``: a text message is the text itself, not what the sender writes.

        Raises:
            RequestError: the request ended without an answer; ``code`` says why.
            ScenarioError: no such agent or wire, or nothing says what is asked.
            BusClosed: the runtime is closed.
        """
        outcomes = await self.send_batch(
            sender,
            receiver,
            [text],
            prompt=prompt,
            labels=labels,
            generate=generate,
            bridge=bridge,
            deadline=deadline,
            fallback=fallback,
            request_ids=None if request_id is None else [request_id],
            channel=channel,
            relay=relay,
        )
        return _answered(outcomes)[0]

    async def send_batch(
        self,
        sender: str,
        receiver: str,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        labels: Sequence[str] | None = None,
        generate: int | None = None,
        bridge: str | None = None,
        deadline: float | None = None,
        fallback: Fallback | None = None,
        request_ids: Sequence[str] | None = None,
        channel: Channel | Literal["soft", "text"] | None = None,
        relay: Relay | None = None,
    ) -> list[Outcome]:
        """As ``send`` for texts that travel together: one outcome each, in order.

        A row that has no answer does not hide the others: its outcome is a RequestError.

        Raises:
            RequestError: nothing was admitted (an agent is down, or too much is outstanding).
            ScenarioError, BusClosed: as for ``send``.
        """
        wire = self._wiring.wire(sender, receiver)
        self._check_bridge(wire.name, bridge)
        task = make_task(
            self._wiring.task, prompt=prompt, labels=labels, generate=generate, relay=relay
        )
        return await self._ask(
            wire.name,
            task,
            texts,
            Channel(channel or Channel.SOFT),
            fallback or wire.fallback,
            deadline,
            request_ids,
        )

    async def send_many(
        self,
        sender: str,
        receiver: str,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        labels: Sequence[str] | None = None,
        generate: int | None = None,
        bridge: str | None = None,
        deadline: float | None = None,
        fallback: Fallback | None = None,
        channel: Channel | Literal["soft", "text"] | None = None,
        relay: Relay | None = None,
        batch_size: int | None = None,
        in_flight: int | None = None,
    ) -> AsyncIterator[list[Reply]]:
        """As ``send`` for many texts: yields batches of replies, in order.

        Leaving the loop early cancels what is outstanding (close the iterator, as
        ``contextlib.aclosing`` does).

        Args:
            batch_size: texts of one message; default: the scenario's.
            in_flight: messages that may be outstanding; default: the scenario's.

        Raises:
            RequestError: of the first text that has no answer. ``send_batch`` gives each row's.
            ScenarioError, BusClosed: as for ``send``.
        """
        size = batch_size or self._wiring.batch_size
        most = in_flight or self._wiring.in_flight
        tasks: deque[asyncio.Task[list[Outcome]]] = deque()
        try:
            for batch in _batches(texts, size):
                call = self.send_batch(
                    sender,
                    receiver,
                    batch,
                    prompt=prompt,
                    labels=labels,
                    generate=generate,
                    bridge=bridge,
                    deadline=deadline,
                    fallback=fallback,
                    channel=channel,
                    relay=relay,
                )
                tasks.append(asyncio.create_task(call))
                while len(tasks) >= most:
                    yield _answered(await tasks[0])
                    tasks.popleft()
            while tasks:
                yield _answered(await tasks[0])
                tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def direct(
        self,
        agent: str,
        text: str,
        *,
        prompt: str | None = None,
        labels: Sequence[str] | None = None,
        generate: int | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
    ) -> Reply:
        """Asks one agent about a text that it reads itself. Arguments and errors as ``send``."""
        outcomes = await self.direct_batch(
            agent,
            [text],
            prompt=prompt,
            labels=labels,
            generate=generate,
            deadline=deadline,
            request_ids=None if request_id is None else [request_id],
        )
        return _answered(outcomes)[0]

    async def direct_batch(
        self,
        agent: str,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        labels: Sequence[str] | None = None,
        generate: int | None = None,
        deadline: float | None = None,
        request_ids: Sequence[str] | None = None,
    ) -> list[Outcome]:
        """As ``direct`` for texts that travel together; outcomes as in ``send_batch``."""
        self._wiring.check_agent(agent)
        task = make_task(self._wiring.task, prompt=prompt, labels=labels, generate=generate)
        return await self._ask(
            direct_wire(agent), task, texts, Channel.TEXT, "error", deadline, request_ids
        )

    async def _ask(
        self,
        wire: str,
        task: TaskSpec,
        texts: Sequence[str],
        channel: Channel,
        fallback: Fallback,
        deadline: float | None,
        request_ids: Sequence[str] | None,
    ) -> list[Outcome]:
        if self._client is None:
            raise AgentwireError(
                "This runtime is not started.", hint="Use it in `async with`, or start() it."
            )
        if not texts:
            return []
        seconds = self._wiring.deadline_s if deadline is None else deadline
        if not seconds > 0:
            raise ScenarioError(f"The deadline {seconds} s is over.", hint="Give seconds above 0.")
        return await self._client.ask(
            wire,
            task,
            texts,
            channel=channel,
            fallback=fallback,
            deadline_s=seconds,
            request_ids=None if request_ids is None else [_request_id(r) for r in request_ids],
        )

    def _check_bridge(self, wire: str, bridge: str | None) -> None:
        used = self._wiring.bridges.get(wire)
        if bridge is not None and bridge != used:
            raise ScenarioError(
                f"wire {wire} uses the bridge {used}, not {bridge}."
                if used
                else f"wire {wire} has no bridge.",
                hint="Name the bridge in the scenario's wire.",
            )

    # -- news -------------------------------------------------------------------------------

    def _from_broker(self, event: BrokerEvent) -> None:
        """In the broker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_broker, event)

    def _on_broker(self, event: BrokerEvent) -> None:
        if self._supervisor is not None:
            self._supervisor.handle(event)
        match event:
            case WireAgreed(wire, bridge):
                self._write("wire_agreed", wire=wire, bridge=bridge.name)
            case WireRefused(wire, code, reason):
                self._write("wire_refused", wire=wire, code=code.value, reason=reason)
            case BrokerFailed(error):
                self._write("broker_failed", error=repr(error))
            case _:
                pass

    def _on_agent(self, event: AgentEvent) -> None:
        client = self._client
        match event:
            case AgentStarted(name, epoch, pid):
                self._write("agent_started", agent=name, epoch=epoch, pid=pid)
                self._progress(ProgressEvent(name, "start", 0.0))
            case AgentLoading(name, _, stage, fraction):
                self._progress(ProgressEvent(name, stage, fraction))
            case AgentReady(name, epoch, pid, model):
                self._write("agent_ready", agent=name, epoch=epoch, pid=pid)
                self._agents[name] = AgentInfo(
                    pid, model.name, model.device, model.fingerprint, epoch
                )
                self._progress(ProgressEvent(name, "ready", 1.0))
                if client is not None:
                    client.agent_ready(name)
            case AgentDied(name, epoch, pid, reason, restart_in):
                self._write("agent_died", agent=name, epoch=epoch, pid=pid, reason=reason)
                if client is not None:
                    client.agent_died(name, reason)
                if restart_in is not None:
                    self._progress(ProgressEvent(name, "lost", 0.0, reason))
            case AgentDown(name, reason, _):
                self._write("agent_down", agent=name, reason=reason)
                if client is not None:
                    client.agent_down(name, reason)
                self._progress(ProgressEvent(name, "down", 0.0, reason))

    def _on_fetch(self, what: str, stage: str, fraction: float) -> None:
        """In the thread that fetches."""
        event = ProgressEvent(what, stage, fraction)
        self._loop.call_soon_threadsafe(self._progress, event)

    def _write(self, event: str, **fields: object) -> None:
        if self._journal is not None:
            self._journal.write(event, **fields)


def _answered(outcomes: Sequence[Outcome]) -> list[Reply]:
    """The replies.

    Raises:
        RequestError: the first that is none.
    """
    replies: list[Reply] = []
    for outcome in outcomes:
        if isinstance(outcome, RequestError):
            raise outcome
        replies.append(outcome)
    return replies


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _request_id(digits: str) -> bytes:
    try:
        request_id = bytes.fromhex(digits)
    except ValueError:
        request_id = b""
    if len(request_id) != 16:
        raise ScenarioError(
            f"The request id {digits!r} is not 32 hex digits.", hint="uuid.uuid4().hex makes one."
        )
    return request_id
