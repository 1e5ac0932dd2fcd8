"""``agentwire serve``: a scenario's agents and wires behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from agentwire.cli.terminal import err, steps
from agentwire.config import Config
from agentwire.evaluation.report import banner
from agentwire.gateway.keys import parse_keys, read_keys
from agentwire.gateway.limits import GatewayLimits
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve


def serve(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="File of API keys, `name key` a line; or AGENTWIRE_API_KEYS."),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="No API keys, though others can connect.")
    ] = False,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Answered at once; more get 429.")
    ] = 256,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds an answer may take.")
    ] = 300.0,
    handle_ttl: Annotated[
        float, typer.Option("--handle-ttl", min=1, help="Seconds a latent handle is good.")
    ] = 1800.0,
    body_bytes: Annotated[
        int, typer.Option("--body-bytes", min=1024, help="Largest request.")
    ] = 1024 * 1024,
    strict: Annotated[bool, typer.Option("--strict", help="Let nothing stand in.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line when ready.")
    ] = False,
) -> None:
    """Answer /v1/chat/completions, /v1/completions and /v1/models from a scenario's agents.

    Each agent is a model; so is each wire (`llama->mistral`): the sender reads, the receiver
    answers from soft tokens. `llama->mistral:keep` answers with a handle that stands for the
    payload.
    """

    from agentwire.gateway.server import ServeOptions, check
    from agentwire.gateway.server import serve as run_server

    listed = Config.from_env().api_keys
    known = read_keys(keys) if keys else parse_keys(listed, "AGENTWIRE_API_KEYS")
    options = ServeOptions(
        host=host,
        port=port,
        keys=known,
        limits=GatewayLimits(
            requests=requests,
            requests_per_key=requests,
            body_bytes=body_bytes,
            timeout_s=timeout,
            handle_ttl_s=handle_ttl,
        ),
        open_to_all=open_to_all,
    )
    check(options)
    resolved = resolve(load_scenario(scenario), source=scenario, strict=strict)
    console = err()
    notice = banner(resolved.substitutions)
    if notice is not None:
        console.print(notice)

    def ready(url: str, models: list[str]) -> None:
        shown.stop()
        if as_json:
            print(json.dumps({"url": url, "models": models}), flush=True)
            return
        names = f"{len(known)} API keys" if known else "no API keys: whoever can connect may ask"
        console.print(f"serving {url} ({names})")
        for model in models:
            console.print(f"  {model}", markup=False)

    with steps() as shown:
        asyncio.run(
            run_server(
                resolved,
                options,
                progress=lambda event: shown.update(event.agent, event.stage, event.fraction),
                ready=ready,
            )
        )
