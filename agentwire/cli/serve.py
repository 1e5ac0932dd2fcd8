"""``agentwire serve``: serves a scenario's agents as an OpenAI-compatible HTTP API."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from agentwire.cli.options import NoStandIns, ScenarioFile
from agentwire.cli.terminal import err, steps
from agentwire.config import Config
from agentwire.evaluation.report import print_banner
from agentwire.gateway.keys import parse_keys, read_keys
from agentwire.gateway.limits import GatewayLimits
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve


def serve(
    scenario: ScenarioFile,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, `name key` per line; or set AGENTWIRE_API_KEYS."),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Serve without API keys on a public address.")
    ] = False,
    requests: Annotated[int, typer.Option(min=1, help="Requests at a time; more get 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request fails.")] = 300.0,
    handle_ttl: Annotated[
        float, typer.Option(min=1, help="Seconds until a latent handle expires.")
    ] = 1800.0,
    body_bytes: Annotated[int, typer.Option(min=1024, help="Largest request body.")] = 1024 * 1024,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds to finish open requests after a stop signal.")
    ] = 10.0,
    strict: NoStandIns = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line when ready.")
    ] = False,
) -> None:
    """Serve /v1/chat/completions, /v1/completions and /v1/models from a scenario's agents.

    Each agent is a model, and so is each wire (`llama->mistral`): the sender reads the text and
    the receiver answers from soft tokens. `llama->mistral:keep` returns a handle for the payload.
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
        drain_s=drain_seconds,
    )
    check(options)
    resolved = resolve(load_scenario(scenario), source=scenario, strict=strict)
    console = err()
    print_banner(resolved.substitutions, console)

    def ready(url: str, models: list[str]) -> None:
        shown.stop()
        if as_json:
            print(json.dumps({"url": url, "models": models}), flush=True)
            return
        names = (
            f"{len(known)} API keys"
            if known
            else "no API keys: anyone who can connect may send requests"
        )
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
