"""Resolves the scenario of a recorded run again."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from agentwire.config import read_regular
from agentwire.errors import ScenarioError
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.scenario import Scenario

CONFIG_FILE = "config.json"


def reopen(run: Path, file: Path | None = None) -> Resolved:
    """The scenario of a run, resolved for this machine.

    Args:
        run: the run's folder.
        file: a scenario file to use instead of the recorded scenario.

    Raises:
        ScenarioError: the run recorded no scenario.
        InputError: the scenario cannot run here.
    """
    if file is not None:
        return resolve(load_scenario(file), source=file)
    hint = "Name the scenario's file with --scenario."
    try:
        config = json.loads(read_regular(run / CONFIG_FILE))
        scenario = Scenario.model_validate(config["scenario"])
    except FileNotFoundError:
        raise ScenarioError(f"{run} does not say which scenario it ran.", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError):
        raise ScenarioError(f"{run / CONFIG_FILE} holds no scenario.", hint=hint) from None
    source = config.get("source")
    return resolve(scenario, source=Path(source) if source else None)
