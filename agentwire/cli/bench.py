"""``agentwire bench``: latency, throughput and the bus, measured and written down."""

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
from agentwire.benchmark.setting import Setting, setting_of
from agentwire.cli.bench_view import BenchView, print_bus, print_record
from agentwire.cli.devices import check_device
from agentwire.cli.terminal import err, out, steps
from agentwire.cli.terminal import out as stdout
from agentwire.errors import InputError, ScenarioError
from agentwire.evaluation.report import banner
from agentwire.scenario.fetch import fetch
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import BenchPlan, Scenario

app = typer.Typer(
    help="Measure latency, throughput and the bus, as ratios in one run.", no_args_is_help=True
)

INTERRUPTED = 130


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
    """The scenario's plan for this machine, with what the command line says instead.

    Raises:
        ScenarioError: a value that the schema refuses.
    """

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
    """Proves that the results can be written before anything is measured.

    Raises:
        InputError: they cannot.
    """
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
        scenario: Annotated[Path, typer.Argument(help="Scenario file.")],
        methods: Annotated[
            str | None, typer.Option("--methods", help="Only these, separated by commas.")
        ] = None,
        batch_sizes: Annotated[
            str | None, typer.Option("--batch-sizes", help="Rows of a message: 1,4,16.")
        ] = None,
        text_tokens: Annotated[
            str | None, typer.Option("--text-tokens", help="Lengths of the texts: 48,256.")
        ] = None,
        rounds: Annotated[
            int | None, typer.Option("--rounds", help="How often all methods take turns.")
        ] = None,
        seconds: Annotated[
            float | None, typer.Option("--seconds", help="Of one method and size in one round.")
        ] = None,
        latency_seconds: Annotated[
            float | None, typer.Option("--latency-seconds", help="The same for latency.")
        ] = None,
        in_flight: Annotated[
            int | None, typer.Option("--in-flight", help="Messages outstanding (throughput).")
        ] = None,
        out: Annotated[
            Path | None, typer.Option("--out", help="Result file; default: in runs/.")
        ] = None,
        plots: Annotated[
            Path | None, typer.Option("--plots", help="Draw PNG and SVG into this folder.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result.")] = False,
        strict: Annotated[bool, typer.Option("--strict", help="Let nothing stand in.")] = False,
        device: Annotated[
            str | None, typer.Option("--device", help="All agents on this device.")
        ] = None,
    ) -> None:
        names = None if methods is None else [m.strip() for m in methods.split(",") if m.strip()]
        changes = {
            "methods": names,
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
        setting = _setting(scenario, changes, strict=strict, device=device)
        record = _run(setting, benchmark, file)
        _show(record, file, as_json=as_json)
        if plots is not None:
            for picture in draw(record, plots):
                typer.echo(f"drawn: {picture}", err=True)
        if record.interrupted:
            raise typer.Exit(INTERRUPTED)

    return command


for _name, _help in (
    ("latency", "One message at a time: percentiles and stages, by text length."),
    ("throughput", "Several messages in flight: rows a second, by batch size."),
    ("all", "Both, with one start of the agents."),
):
    app.command(_name, help=_help)(_measure(_name))  # type: ignore[arg-type]


@app.command("bus")
def bus(
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Alternating rounds.")] = 5,
    messages: Annotated[
        int, typer.Option("--messages", min=100, help="Of each phase of a round.")
    ] = 400,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result file; default: in runs/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result.")] = False,
) -> None:
    """The bus against bare ZeroMQ sockets: 64 KiB one way over ipc, and messages a second."""

    file = _check_out(out or _default_out("bus"))
    console = err()

    def tell(number: int, kind: str, figures: dict[str, float]) -> None:
        shown = f"{figures['p50_us']:,.0f} us, {figures['messages_per_s']:,.0f} messages/s"
        console.print(f"round {number + 1} of {rounds}  {kind:<12} {shown}")

    record = compare(
        rounds, messages, command=_typed(), tell=tell, keep=lambda record: record.write(file)
    )
    record.write(file)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        print_bus(record, stdout())
    typer.echo(f"written to {file}", err=True)
    if record.interrupted:
        raise typer.Exit(INTERRUPTED)


def _typed() -> str:
    """The command line, as it can be repeated."""
    return shlex.join(["agentwire", *sys.argv[1:]])


def _setting(source: Path, changes: dict[str, Any], *, strict: bool, device: str | None) -> Setting:

    loaded = load_scenario(source)
    _changed(loaded, False, changes)  # what is wrong with the options is said at once
    inventory = Inventory.here()
    resolved = resolve(
        loaded,
        source=source,
        inventory=inventory,
        strict=strict,
        device=check_device(device),
        require_bridges=True,
    )
    plan = _changed(loaded, resolved.on_cpu, changes)
    notice = banner(resolved.substitutions)
    if notice is not None:
        err().print(notice)
    with steps() as shown:
        return setting_of(fetch(resolved, inventory=inventory, progress=shown.update), plan)


def _run(setting: Setting, benchmark: Benchmark, file: Path) -> BenchRecord:

    def keep(record: BenchRecord) -> None:
        record.write(file)

    with steps() as loading:
        view = BenchView(err(), loading)
        bench = Bench(setting, benchmark, _typed(), view, keep)
        return anyio.run(bench.run)


def _show(record: BenchRecord, file: Path, *, as_json: bool) -> None:

    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        print_record(record, out())
    typer.echo(f"written to {file}", err=True)
