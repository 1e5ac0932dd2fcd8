"""The command line: what can be typed, and how errors are shown. The work is done elsewhere.

Exit codes: 0 done; 1 something unexpected, or an agent that stayed down; 2 what was given is
wrong or missing (one line and a next step); 130 interrupted.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import agentwire
from agentwire.cli import (
    agent,
    bench,
    bridges,
    data,
    deadletters,
    doctor,
    inspect,
    keys,
    models,
    replay,
    report,
    run,
    serve,
    top,
    train,
    validate,
)
from agentwire.errors import AgentwireError, InputError

OPTIONAL = {
    **dict.fromkeys(("torch", "transformers", "gguf", "accelerate"), "models"),
    **dict.fromkeys(("starlette", "uvicorn", "prometheus_client"), "gateway"),
    **dict.fromkeys(("matplotlib", "sklearn"), "inspect"),
    "ray": "ray",
}
"""Libraries that a machine may lack -> the extra that brings them."""

app = typer.Typer(
    name="agentwire",
    help="LLM agents that hand each other soft tokens instead of text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("validate")(validate.validate)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("agent")(agent.agent)
app.command("top")(top.top)
app.command("replay")(replay.replay)
app.add_typer(bench.app, name="bench")
app.add_typer(deadletters.app, name="deadletters")
app.add_typer(keys.app, name="keys")
app.add_typer(bridges.app, name="bridges")
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentwire {agentwire.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """LLM agents that hand each other soft tokens instead of text."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and exits; the only place where exceptions become exit codes."""
    try:
        code = app(arguments, prog_name="agentwire", standalone_mode=False)
    except InputError as error:
        _say(error)
        sys.exit(2)
    except AgentwireError as error:
        _say(error)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nobody can be told
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name not in OPTIONAL:
            _unexpected(error)
            sys.exit(1)
        _say(
            InputError(
                f"this needs {error.name}, which is not installed.",
                hint=f"Run `pip install 'agentwire[{OPTIONAL[error.name]}]'`.",
            )
        )
        sys.exit(2)
    except Exception as error:
        # typer's own usage errors (unknown option, missing argument) show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        _unexpected(error)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _say(error: AgentwireError) -> None:
    message = " ".join(error.message.split())
    typer.secho(f"error: {message}", err=True, fg="red")
    if error.hint:
        typer.echo(f"next:  {' '.join(error.hint.split())}", err=True)


def _unexpected(error: Exception) -> None:
    """A bug: one line for the user, and everything for its report in a file."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="agentwire-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exception(error, file=log)
    first = (str(error).splitlines() or [""])[0]
    typer.secho(f"unexpected error: {type(error).__name__}: {first}", err=True, fg="red")
    typer.echo(f"next:  please report it with {Path(log.name)}", err=True)


if __name__ == "__main__":
    main()
