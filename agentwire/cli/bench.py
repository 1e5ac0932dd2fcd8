"""``agentwire bench``: measures latency, throughput and the bus."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from pydantic import ValidationError

from agentwire.benchmark.bus import compare
from agentwire.benchmark.plan import Benchmark
from agentwire.benchmark.plots import check_plots, draw
from agentwire.benchmark.record import BenchRecord
from agentwire.benchmark.session import Bench
from agentwire.benchmark.setup import BenchSetup, setup_of
from agentwire.cli.bench_view import BenchView, print_bus, print_record
from agentwire.cli.options import AsJson, Device, NoStandIns, ScenarioFile, names_in
from agentwire.cli.terminal import echo, err, print_json, steps
from agentwire.cli.terminal import out as stdout
from agentwire.errors import InputError, ScenarioError
from agentwire.evaluation.report import print_banner
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolver
from agentwire.spec.scenario import BenchPlan, Scenario

app = typer.Typer(
    help="Measure latency, throughput and the bus, as ratios in one run.", no_args_is_help=True
)

INTERRUPTED = 130
ResultFile = Annotated[
    Path | None, typer.Option("--out", help="Result file; default: a new one in runs/.")
]


def _numbers(text: str | None, flag: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(
            f"{flag} {text}: not a list of numbers.", hint=f"For example: {flag} 1,4,16"
        ) from None


def _changed(scenario: Scenario, on_cpu: bool, changes: dict[str, Any]) -> BenchPlan:
    """The scenario's plan for this machine, with the options of the command line."""
    spec = scenario.bench
    plan = spec.on_cpu if on_cpu and spec.on_cpu is not None else spec
    values = {k: v for k, v in changes.items() if v is not None}
    known = plan.model_dump(exclude={"on_cpu"})
    try:
        return BenchPlan.model_validate({**known, **values})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise ScenarioError(
            f"{flag}: {first['msg']}, not {first['input']!r}.", hint="Correct that value."
        ) from None


def _default_out(benchmark: str) -> Path:
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-bench-{benchmark}.json"


def _check_out(out: Path) -> Path:
    """Checks that the results can be written before anything is measured."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8"):
            pass
        if not out.stat().st_size:
            out.unlink()
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror}.", hint="Name another file with --out."
        ) from None
    return out


def _measure(benchmark: Benchmark) -> Callable[..., None]:
    """The command of one benchmark; all have the same options."""

    def command(
        scenario: ScenarioFile,
        methods: Annotated[
            str | None, typer.Option(help="Methods to measure, separated by commas.")
        ] = None,
        batch_sizes: Annotated[str | None, typer.Option(help="Rows of a message: 1,4,16.")] = None,
        text_tokens: Annotated[
            str | None, typer.Option(help="Lengths of the texts: 48,256.")
        ] = None,
        rounds: Annotated[
            int | None, typer.Option(help="Rounds; all methods alternate in each.")
        ] = None,
        seconds: Annotated[
            float | None, typer.Option(help="Seconds per method and size in a round.")
        ] = None,
        latency_seconds: Annotated[float | None, typer.Option(help="The same for latency.")] = None,
        in_flight: Annotated[
            int | None, typer.Option(help="Outstanding messages (throughput).")
        ] = None,
        out: ResultFile = None,
        plots: Annotated[Path | None, typer.Option(help="Folder for plots as PNG and SVG.")] = None,
        as_json: AsJson = False,
        strict: NoStandIns = False,
        device: Device = None,
    ) -> None:
        changes = {
            "methods": names_in(methods),
            "batch_sizes": _numbers(batch_sizes, "--batch-sizes"),
            "text_tokens": _numbers(text_tokens, "--text-tokens"),
            "rounds": rounds,
            "seconds": seconds,
            "latency_seconds": latency_seconds,
            "in_flight": in_flight,
        }
        file = _check_out(out or _default_out(benchmark))
        if plots is not None:
            check_plots(plots)
        record = _run(_prepare(scenario, changes, strict=strict, device=device), benchmark, file)
        if as_json:
            print_json(record.model_dump(mode="json"))
        else:
            print_record(record, stdout())
        echo(f"written to {file}", err=True)
        if plots is not None:
            for picture in draw(record, plots):
                echo(f"plotted: {picture}", err=True)
        if record.interrupted:
            raise typer.Exit(INTERRUPTED)

    return command


for _name, _help in (
    ("latency", "Measure one message at a time: percentiles and stages by text length."),
    ("throughput", "Measure several messages in flight: rows per second by batch size."),
    ("all", "Measure both with one start of the agents."),
):
    app.command(_name, help=_help)(_measure(_name))  # type: ignore[arg-type]


@app.command("bus")
def bus(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; both alternate in each.")] = 5,
    messages: Annotated[int, typer.Option(min=100, help="Messages per phase of a round.")] = 400,
    out: ResultFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the bus with bare ZeroMQ sockets: 64 KiB one way over ipc, messages per second."""
    file = _check_out(out or _default_out("bus"))
    console = err()

    def show_round(number: int, kind: str, figures: dict[str, float]) -> None:
        shown = f"{figures['p50_us']:,.0f} us, {figures['messages_per_s']:,.0f} messages/s"
        console.print(f"round {number + 1} of {rounds}  {kind:<12} {shown}")

    record = compare(
        rounds,
        messages,
        command=_command_line(),
        tell=show_round,
        keep=lambda record: record.write(file),
    )
    record.write(file)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_bus(record, stdout())
    echo(f"written to {file}", err=True)
    if record.interrupted:
        raise typer.Exit(INTERRUPTED)


def _command_line() -> str:
    """The command line, quoted for a shell."""
    return shlex.join(["agentwire", *sys.argv[1:]])


def _prepare(
    source: Path, changes: dict[str, Any], *, strict: bool, device: str | None
) -> BenchSetup:
    loaded = load_scenario(source)
    _changed(loaded, False, changes)  # reports bad options before anything is fetched
    inventory = Inventory.here()
    resolved = Resolver(inventory, source, strict, device).resolve(loaded, bridges=True)
    plan = _changed(loaded, resolved.on_cpu, changes)
    print_banner(resolved.substitutions, err())
    with steps() as shown:
        return setup_of(fetch(resolved, inventory=inventory, progress=shown.update), plan)


def _run(setup: BenchSetup, benchmark: Benchmark, file: Path) -> BenchRecord:
    def keep(record: BenchRecord) -> None:
        record.write(file)

    with steps() as loading:
        view = BenchView(err(), loading)
        bench = Bench(setup, benchmark, _command_line(), view, keep)
        return anyio.run(bench.run)
