"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from agentwire.errors import DeviceError


def check_device(device: str | None) -> str | None:
    """The device as given."""
    if device is not None and not re.fullmatch(r"auto|cpu|cuda:\d+", device):
        raise DeviceError(
            f"--device {device}: unknown kind of device.",
            hint="Devices are auto, cpu, cuda:0, cuda:1, …",
        )
    return device


def names_in(text: str | None) -> list[str] | None:
    """The names in a list with commas; None where the option is not given."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file.")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.")]
NoStandIns = Annotated[
    bool, typer.Option("--strict", help="Fail if a model or dataset would be replaced by another.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device of all agents: cpu, cuda:0, …", callback=check_device),
]
