"""``agentwire demo``: classification through a bridge, or questions about a passage read once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from agentwire.bridge.card import CardReader
from agentwire.cli.options import AsJson, Device
from agentwire.cli.run import run
from agentwire.cli.terminal import err, out, print_json, steps
from agentwire.config import Config
from agentwire.errors import BridgeError, MissingBridge, ScenarioError
from agentwire.evaluation.report import print_banner
from agentwire.runtime.call_options import GenerationOptions
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.reply import Reply
from agentwire.runtime.runtime import Runtime
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, Resolver
from agentwire.spec.scenario import WireSpec
from agentwire.task.datasets import load_rows
from agentwire.task.samples import SAMPLE_SPLIT

SCENARIOS: Final = Path("scenarios")
PASSAGES: Final = 3


class What(StrEnum):
    """What is shown."""

    CLASSIFY = "classify"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of the sample with its own questions, each with one right answer."""

    text: str
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer from soft tokens or from the text: what the receiver read, and what was sent."""

    text: str
    read: int
    written: int
    bytes: int
    ms: float
    reason: str = ""


def passages(count: int = PASSAGES) -> list[Passage]:
    """The first passages of the sample of questions, which was written for this project."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in load_rows("squad", SAMPLE_SPLIT, config=Config.from_env()).rows:
        found.setdefault(row.text, []).append((row.question, row.answers[0]))
    return [Passage(text, tuple(asked)) for text, asked in list(found.items())[:count]]


def demo(
    what: Annotated[What, typer.Argument(help="What is shown.")] = What.CLASSIFY,
    ask: Annotated[
        list[str] | None, typer.Option("--ask", help="A question; may be repeated.")
    ] = None,
    passage: Annotated[
        int, typer.Option(min=1, max=PASSAGES, help="The passage that --ask is about.")
    ] = 1,
    text: Annotated[
        Path | None, typer.Option(help="File with a passage of your own, for --ask.")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option(help="Scenario file, if not the shipped one.")
    ] = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Show two language models that work over the bus.

    `classify` runs the shipped scenario, as `make demo` does. `reader`: one model reads a passage
    once, and the other answers questions about it from soft tokens, beside itself with the text.
    Without --ask, questions are typed on a terminal; elsewhere the sample's own are asked.
    """
    if what is What.CLASSIFY:
        given = ask or text or passage != 1
        if given:
            raise ScenarioError("--ask, --passage and --text are for `agentwire demo reader`.")
        chosen = scenario or SCENARIOS / "llama_to_mistral_sst2.yaml"
        run(chosen, as_json=as_json, device=device)
        return
    known = passages()
    own = [Passage(text.read_text(encoding="utf-8").strip(), ())] if text is not None else []
    one = own[0] if own else known[passage - 1]
    shown: list[Passage] | None = known
    if ask:
        shown = [Passage(one.text, tuple((question, "") for question in ask))]
    elif sys.stdin.isatty() and not as_json:
        shown = None
    elif own:
        raise ScenarioError("--text needs questions.", hint="Add --ask, perhaps several times.")
    source = scenario or SCENARIOS / "read_once.yaml"
    inventory = Inventory.here(ask_hub=True)
    resolver = Resolver(inventory, source, device=device)
    try:
        resolved = resolver.resolve(load_scenario(source), bridges=True)
    except MissingBridge as error:
        hint = "Run this where `bridges/` is, or train one: docs/reader.md."
        raise BridgeError(error.message, hint=hint) from None
    print_banner(resolved.substitutions, err())
    with steps() as fetching:
        resolved = fetch(resolved, inventory=inventory, progress=fetching.update)
    if own:
        known = own
    asyncio.run(_read(resolved, known, shown, None if as_json else out()))


async def _read(
    resolved: Resolved,
    known: Sequence[Passage],
    asked: Sequence[Passage] | None,
    console: Console | None,
) -> None:
    """Asks about the passages; ``asked`` None: what is typed about those known."""
    deployment = Deployment.of(resolved)
    wire = next(iter(deployment.wires.values()))
    reader = deployment.reader(wire.name)
    if reader is None:
        raise ScenarioError(
            f"The bridge of wire {wire.name} does not answer free questions.",
            hint="Use a scenario whose bridge has `answers: free` on its card.",
        )
    with steps() as loading:
        runtime = Runtime(resolved, progress=lambda e: loading.update(e.agent, e.stage, e.fraction))
        await runtime.start()
    try:
        demonstration = Demonstration(runtime, wire, reader, console)
        await demonstration.warm_up(known[0])
        if console is not None:
            console.print("Tokens: read + written by the receiver. Bytes: sent to it.")
        if asked is None:
            async for one in _typed(known):
                await demonstration.show(one, heading=False)
        for one in asked or ():
            await demonstration.show(one)
        if console is None:
            print_json(demonstration.rows)
    finally:
        await runtime.aclose()


class Demonstration:
    """Asks questions over the wire and of the receiver with the text, and prints both."""

    def __init__(
        self, runtime: Runtime, wire: WireSpec, reader: CardReader, console: Console | None
    ) -> None:
        self._runtime, self._wire, self._reader = runtime, wire, reader
        self._console = console
        self._kept: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    async def warm_up(self, passage: Passage) -> None:
        """Asks once without showing it: a first batch takes longer."""
        await self._from_text(passage, "Why?")
        await self._from_soft(passage, "Why?")
        self._kept.clear()

    async def show(self, passage: Passage, *, heading: bool = True) -> None:
        """Asks the passage's questions; ``heading``: the passage comes before them."""
        new = passage.text not in self._kept
        if heading:
            self._print(f"\n{passage.text}\n")
        soft_ms = text_ms = 0.0
        for question, expected in passage.questions:
            soft = await self._from_soft(passage, question)
            text = await self._from_text(passage, question)
            soft_ms, text_ms = soft_ms + soft.ms, text_ms + text.ms
            self._print(f"{question}{f'  (expected: {expected})' if expected else ''}")
            self._print(_line("soft tokens", soft))
            self._print(_line("text", text))
            found = {"passage": passage.text, "question": question, "expected": expected}
            self.rows.append({**found, "soft": asdict(soft), "text": asdict(text)})
        if new:
            kept = self._kept[passage.text]
            count = len(passage.questions)
            self._print(
                f"The passage was read once: {kept.latency_ms:.0f} ms, {kept.soft_tokens} soft "
                f"tokens. {count} question{'s'[: count != 1]}: {kept.latency_ms + soft_ms:.0f} ms "
                f"with reading, {text_ms:.0f} ms from the text."
            )

    async def _from_soft(self, passage: Passage, question: str) -> Answered:
        sender, receiver = self._wire.sender, self._wire.receiver
        if passage.text not in self._kept:
            self._kept[passage.text] = await self._runtime.keep(sender, receiver, passage.text)
        kept = self._kept[passage.text]
        reply = await self._runtime.send(sender, receiver, kept, prompt=question, generate=24)
        return _answered(reply)

    async def _from_text(self, passage: Passage, question: str) -> Answered:
        reply = await self._runtime.direct(
            self._wire.receiver,
            passage.text,
            prompt=self._reader.question,
            question=question,
            generate=GenerationOptions(24, stop=self._reader.stop),
        )
        return _answered(reply)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False)


def _answered(reply: Reply) -> Answered:
    text = reply.text or ""
    tokens = reply.prompt_tokens, reply.completion_tokens
    return Answered(text, *tokens, reply.payload_bytes, reply.latency_ms, reply.reason)


def _line(label: str, answer: Answered) -> str:
    tokens = f"{answer.read:>4} + {answer.written:>2} tokens"
    figures = f"{tokens} {answer.bytes:>8,} bytes {answer.ms:>6.0f} ms"
    why = f"  went as text: {answer.reason}" if answer.reason else ""
    return f"  {label:<12}{figures}   {answer.text or '(empty)'}{why}"


async def _typed(known: Sequence[Passage]) -> AsyncIterator[Passage]:
    """Questions from the terminal, until an empty line. A number chooses another passage."""
    passage = known[0]
    for number, one in enumerate(known, 1):
        print(f"\n[{number}] {one.text}")
    print(f"\nAsk about passage 1; 1 to {len(known)} chooses one, an empty line ends.")
    while True:
        print("> ", end="", flush=True)
        line = (await _read_line()).strip()
        if not line:
            return
        if line.isdecimal() and 1 <= int(line) <= len(known):
            passage = known[int(line) - 1]
            continue
        yield Passage(passage.text, ((line, ""),))


async def _read_line() -> str:
    """A line from the terminal. The loop goes on meanwhile, and Ctrl-C ends it."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline()
