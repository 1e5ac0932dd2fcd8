"""Cost of embedding: one message by the Python API, by adapters, and by the gateway.

All of them send to the same two fake agents (real processes, real bus, models that answer at once),
one message at a time. Each message goes by every way before the next one, and a figure is the
median over all messages. Adapters whose libraries are not installed are left out, and the record
says so.

    python bench/embedding.py [--messages 200] [--rounds 5] [--out bench/results/embedding-cpu.json]

Adapters: ``make test-frameworks`` makes an environment that has them,
``.venv-frameworks/bin/python bench/embedding.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from records import parser_of, provenance, write

import agentwire
from agentwire.adapters.local import LocalAgents

LABELS = ["good", "bad"]
PROMPT = "Is it good?"
ASKED = {"prompt": PROMPT, "labels": LABELS}
WIRE = "reader->critic"
SCENARIO = """
name: embedding
agents:
  reader: {model: fake-reader, backend: fake}
  critic: {model: fake-critic, backend: fake}
wires: [{from: reader, to: critic}]
"""
Way = Callable[[str], Awaitable[str]]
BARE = "Python API"
DISTRIBUTIONS = ("langchain-core", "autogen-core", "agent-framework-core", "openai")


def adapters(agents: LocalAgents) -> dict[str, Way]:
    """The Python adapters that are installed."""

    async def local(text: str) -> str:
        return (await agents.aask(WIRE, [("user", text)], agentwire=ASKED)).text

    ways: dict[str, Way] = {"LocalAgents": local}
    if importlib.util.find_spec("langchain_core"):
        from agentwire.adapters.langchain import ChatAgentwire

        model = ChatAgentwire(agents=agents, model=WIRE, prompt=PROMPT, labels=LABELS)

        async def langchain(text: str) -> str:
            return str((await model.ainvoke(text)).content)

        ways["LangChain adapter"] = langchain
    if importlib.util.find_spec("autogen_agentchat"):
        from autogen_core.models import UserMessage

        from agentwire.adapters.autogen import AgentwireClient

        client = AgentwireClient(agents, WIRE, agentwire=ASKED)

        async def autogen(text: str) -> str:
            message = UserMessage(content=text, source="user")
            return str((await client.create([message])).content)

        ways["AutoGen adapter"] = autogen
    if importlib.util.find_spec("agent_framework"):
        from agent_framework import Message

        from agentwire.adapters.agent_framework import AgentwireChatClient

        chat = AgentwireChatClient(agents, WIRE, agentwire=ASKED)

        async def framework(text: str) -> str:
            return str((await chat.get_response([Message("user", [text])])).text)

        ways["agent-framework adapter"] = framework
    return ways


def over_http(url: str) -> dict[str, Way]:
    """The gateway, with one connection for each client."""
    import httpx2

    http = httpx2.AsyncClient(base_url=url)

    def body(text: str, **more: Any) -> dict[str, Any]:
        return {
            "model": WIRE,
            "messages": [{"role": "user", "content": text}],
            "agentwire": ASKED,
            **more,
        }

    async def plain(text: str) -> str:
        response = await http.post("/chat/completions", json=body(text))
        return str(response.json()["choices"][0]["message"]["content"])

    async def streamed(text: str) -> str:
        response = await http.post("/chat/completions", json=body(text, stream=True))
        first = json.loads(response.text.splitlines()[0].removeprefix("data: "))
        return str(first["choices"][0]["delta"]["content"])

    ways: dict[str, Way] = {"gateway": plain, "gateway, streamed": streamed}
    if importlib.util.find_spec("openai"):
        import openai

        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

        async def sdk(text: str) -> str:
            reply = await client.chat.completions.create(
                model=WIRE,
                messages=[{"role": "user", "content": text}],
                extra_body={"agentwire": ASKED},
            )
            return str(reply.choices[0].message.content)

        ways["gateway, OpenAI SDK"] = sdk
    return ways


async def measure(ways: dict[str, Way], messages: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every message by way.

    Raises:
        AssertionError: two answers differ.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for turn in range(-1, rounds):  # the first warms up
        for number in range(messages):
            order.append(order.pop(0))  # each follows another one than before
            answers = {}
            for name in order:
                began = time.perf_counter()
                answers[name] = await ways[name](f"review {turn} {number}")
                if turn >= 0:
                    taken[name].append((time.perf_counter() - began) * 1000)
            assert len(set(answers.values())) == 1, answers
    return taken


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "embedding.yaml"
        scenario.write_text(SCENARIO)
        async with AsyncExitStack() as stack:
            runtime = await stack.enter_async_context(agentwire.open(scenario))

            async def bare(text: str) -> str:
                reply = await runtime.send("reader", "critic", text, prompt=PROMPT, labels=LABELS)
                return str(reply.label)

            agents = LocalAgents(scenario)
            await asyncio.to_thread(agents.start)
            stack.callback(agents.close)
            command = [sys.executable, "-m", "agentwire", "serve", str(scenario)]
            server = await asyncio.create_subprocess_exec(
                *command,
                *("--port", "0", "--json"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            stack.push_async_callback(server.wait)
            stack.callback(server.terminate)
            assert server.stdout is not None
            started = json.loads(await server.stdout.readline())
            ways = {BARE: bare, **adapters(agents), **over_http(started["url"])}
            taken = await measure(ways, options.messages, options.rounds)
    return record(taken, options)


def record(taken: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    base = statistics.median(taken[BARE])
    ways = {}
    for name, times in taken.items():
        p50 = statistics.median(times)
        ways[name] = {
            "p50_ms": round(p50, 3),
            "p95_ms": round(statistics.quantiles(times, n=20)[-1], 3),
            "added_p50_ms": round(p50 - base, 3),
            "ratio": round(p50 / base, 2),
        }
    versions = {}
    for distribution in ("starlette", "uvicorn", *DISTRIBUTIONS):
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[distribution] = "not installed"
    return {
        "benchmark": "embedding",
        "labels": ["FAKE AGENTS that answer at once: real processes and bus, no language model"],
        **provenance(),
        "messages": options.messages * options.rounds,
        "versions": versions,
        "ways": ways,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = asyncio.run(run(options))
    for name, way in result["ways"].items():
        figures = f"p50 {way['p50_ms']:8.3f} ms   {way['added_p50_ms']:+8.3f} ms"
        print(f"{name:26} {figures}", file=sys.stderr)
    write(result, options.out)


if __name__ == "__main__":
    main()
