"""``agentwire report``: shows a recorded run on the screen, as SVG or as HTML."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from agentwire.cli.options import RunFolder
from agentwire.cli.terminal import out
from agentwire.config import read_regular
from agentwire.errors import InputError
from agentwire.evaluation.matrix.report import print_matrix
from agentwire.evaluation.matrix.result import FILE, MatrixResult
from agentwire.evaluation.report import print_banner, print_report
from agentwire.evaluation.result import RunResult

PICTURE_WIDTH = 112
"""Columns of the SVG."""


def report(
    run: RunFolder,
    svg: Annotated[Path | None, typer.Option(help="Write the report as SVG to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as HTML to this file.")
    ] = None,
) -> None:
    """Show the report of a recorded run again."""
    result = read_result(run)
    if svg is None and html is None:
        _print(result, run, out())
        return
    console = _recorded(result, run)
    for option, file, text in (
        ("svg", svg, partial(console.export_svg, title=result.command, clear=False)),
        ("html", html, console.export_html),
    ):
        if file is None:
            continue
        try:
            file.write_text(text(), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{file} cannot be written: {error.strerror}.",
                hint=f"Name another file with --{option}.",
            ) from error
        out().print(f"written to {file}", markup=False)


def read_result(run: Path) -> RunResult | MatrixResult:
    """result.json or matrix.json of a run's folder."""
    file = run / FILE
    kind: type[MatrixResult | RunResult] = MatrixResult
    if not file.is_file():
        file, kind = run / "result.json", RunResult
    try:
        return kind.model_validate_json(read_regular(file))
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror}.", hint="Name a folder that a run wrote."
        ) from error
    except ValidationError as error:
        raise InputError(
            f"{file} is not the result of a run ({error.error_count()} problems).",
            hint="Run the scenario again.",
        ) from error


def picture(result: RunResult | MatrixResult, run: Path) -> str:
    """The report as SVG, with the stand-ins above it."""
    return _recorded(result, run).export_svg(title=result.command)


def _recorded(result: RunResult | MatrixResult, run: Path) -> Console:
    console = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
    _print(result, run, console)
    return console


def _print(result: RunResult | MatrixResult, run: Path, console: Console) -> None:
    print_banner(result.substitutions, console)
    if isinstance(result, MatrixResult):
        print_matrix(result, run, console)
    else:
        print_report(result, run, console)
