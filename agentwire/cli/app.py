"""The command line: its commands, and how errors become messages and exit codes.

Exit codes: 0 done; 1 something unexpected, an agent that stayed down, or rows without an answer;
2 the input is wrong or something is missing (one line and a next step); 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import agentwire
from agentwire.cli.terminal import echo, visible
from agentwire.config import check_names
from agentwire.errors import AgentwireError, InputError

COMMANDS = {
    "run": "Run a scenario: every method over the same rows.",
    "demo": "Show two models at work: classify, or reader (questions about a passage).",
    "train": "Train the bridge of a scenario.",
    "report": "Show the report of a recorded run again.",
    "inspect": "Show what a bridge's soft tokens look like.",
    "validate": "Check scenario files; nothing is downloaded or run.",
    "serve": "Serve a scenario's agents as an OpenAI-compatible HTTP API.",
    "doctor": "Show what this machine has, what scenarios would run here, and what is missing.",
    "agent": "Run one agent of a scenario whose bus is on another machine.",
    "top": "Show a run until it ends; Ctrl-C leaves earlier.",
    "replay": "Replay a run's recording and compare it with its journal.",
    "bench": "Measure latency, throughput and the bus, as ratios in one run.",
    "deadletters": "Requests that were in flight when an agent died: list, retry.",
    "keys": "CURVE keys of agents on other machines: new, list, allow, revoke.",
    "bridges": "Trained bridges: list, show, verify.",
    "models": "Models: list, pull.",
    "data": "Datasets: list, show, pull.",
}
"""Command -> its line in ``agentwire --help``. Its module, ``agentwire.cli.<command>``, is imported
when the command runs: importing all of them would take seconds."""

OPTIONAL = {
    **dict.fromkeys(("torch", "transformers", "gguf", "accelerate"), "models"),
    **dict.fromkeys(("starlette", "uvicorn"), "gateway"),
    **dict.fromkeys(("matplotlib", "sklearn"), "inspect"),
    "ray": "ray",
}
"""Optional libraries -> the extra that installs them."""


_SPACE = "Free some space, or name a folder on another disk."
_RIGHTS = "Check the owner and the permissions."
NEXT_OF = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENOENT: "It may have been removed or renamed meanwhile; restore it, or start again.",
    errno.EMFILE: "Raise the limit of open files: `ulimit -n 8192`.",
}
"""What to do about an error of the operating system."""


class LazyGroup(TyperGroup):
    """Lists commands without importing them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in COMMANDS else command, rest


def _load(name: str) -> Any:
    """The command of a module: its Typer ``app``, or the function with the module's name."""
    module = importlib.import_module(f"agentwire.cli.{name}")
    group = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False, rich_markup_mode="rich")
        group.command(name)(getattr(module, name))
    return typer.main.get_command(group)


app = typer.Typer(
    cls=LazyGroup,
    name="agentwire",
    help="LLM agents that hand each other soft tokens instead of text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)  # LazyGroup replaces it


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"agentwire {agentwire.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """LLM agents that hand each other soft tokens instead of text."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and exits; the only place where exceptions become exit codes."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not while tests capture it
        sys.stdout.reconfigure(errors="replace")
    try:
        check_names(sys.argv[1:] if arguments is None else arguments)
        code = app(arguments, prog_name="agentwire", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        _print_error(error)
        sys.exit(2)
    except AgentwireError as error:
        _print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone; nobody would see a message
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            _print_unexpected(error)
            sys.exit(1)
        where = f"{error.filename}: " if error.filename is not None else ""
        hint = NEXT_OF.get(error.errno, "Check the path.")
        _print_error(InputError(f"{where}{error.strerror}.", hint=hint))
        _drop_output()
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name not in OPTIONAL:
            _print_unexpected(error)
            sys.exit(1)
        extra = OPTIONAL[error.name]
        _print_error(
            InputError(
                f"This command needs {error.name}, which is not installed.",
                hint=f"Run `pip install '.[{extra}]'`.",
            )
        )
        sys.exit(2)
    except Exception as error:
        # Usage errors (unknown option, missing argument) print themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        _print_unexpected(error)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Sends what is left of stdout nowhere if it cannot be written; Python would fail at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: AgentwireError) -> None:
    message = visible(" ".join(error.message.split()))
    typer.secho(f"error: {message}", err=True, fg="red")
    if error.hint:
        echo(f"next:  {' '.join(error.hint.split())}", err=True)


def _print_unexpected(error: Exception) -> None:
    """Prints one line about a bug and writes the traceback into a file for its report."""
    first = visible((str(error).splitlines() or [""])[0])
    typer.secho(f"unexpected error: {type(error).__name__}: {first}", err=True, fg="red")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="agentwire-", suffix=".log", delete=False, encoding="utf-8",
            errors="backslashreplace",
        ) as log:  # fmt: skip
            traceback.print_exception(error, file=log)
        echo(f"next:  please report it with {Path(log.name)}", err=True)
    except OSError:
        traceback.print_exception(error)


if __name__ == "__main__":
    main()
