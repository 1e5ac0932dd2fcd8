"""Plans a run before any model loads: rows, methods, folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentwire.agent.launching.placement import Remote
from agentwire.config import Config, read_regular
from agentwire.download import OnProgress
from agentwire.errors import InputError, ScenarioError
from agentwire.evaluation.methods import MethodSpec, check_methods, get_method
from agentwire.evaluation.predictions import Wanted, choose_rows
from agentwire.scenario.resolve import Resolved
from agentwire.spec.scenario import Scenario
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import load_definition
from agentwire.task.rows import rows_sha256

CPU_LIMIT = 200
"""Default number of rows if any agent computes on a CPU; otherwise all."""
CONFIG_FILE = "config.json"
LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run, ready to start."""

    resolved: Resolved
    methods: tuple[MethodSpec, ...]
    dataset: Dataset[Any]  # the whole split
    rows: tuple[int, ...]  # indices of the scored rows, in order
    row_sha256: str
    label_words: tuple[str, ...]  # the word that is scored for each class; questions have none
    limit: int  # rows that the user asked for; 0: all
    folder: Path
    command: str
    resumed: bool  # the folder has an earlier session of the same run
    remote: Remote | None = None  # agents on other machines, and where they join
    metrics_port: int | None = None  # loopback port of Prometheus metrics; 0: any free one
    record: bool = False  # record the bus for ``agentwire replay``

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def wanted(self) -> dict[int, Wanted]:
        """What is right for each scored row."""
        rows = self.dataset.rows
        if not self.label_words:
            return {row: rows[row] for row in self.rows}
        return {row: self.label_words[rows[row].label] for row in self.rows}

    def settings(self) -> dict[str, Any]:
        """What must be equal in all sessions of one run."""
        resolved = self.resolved
        task = load_definition(resolved.data.dataset).spec() if resolved.data else None
        return {
            "scenario": settings_of(resolved.scenario),
            "models": {name: choice.model for name, choice in resolved.choices.items()},
            "layers": {name: choice.layer for name, choice in resolved.choices.items()},
            # Which of several equal GPUs is free may change between sessions.
            "devices": {n: spec.device.partition(":")[0] for n, spec in resolved.agents.items()},
            "task_id": task.task_id if task else None,
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "row_sha256": self.row_sha256,
            "bridge": "+".join(p.card.weights_sha256 for p in resolved.parts if p.card) or None,
        }


def settings_of(scenario: Scenario) -> dict[str, Any]:
    """The fields of a scenario on which the figures of a run depend."""
    # Checksums stand for ``task`` and ``limit``, whose files may move, and the lines of
    # predictions.jsonl for ``methods``.
    other = {"description", "methods", "task", "limit", "bench", "matrix"}
    text = scenario.model_dump_json(by_alias=True, exclude=other)  # infinity as a string
    settings: dict[str, Any] = json.loads(text)
    return settings


def pick_methods(names: Sequence[str]) -> tuple[MethodSpec, ...]:
    """The methods of these names, in this order, each once."""
    return tuple(get_method(name) for name in dict.fromkeys(names))


def plan_run(
    resolved: Resolved,
    *,
    config: Config,
    methods: Sequence[str],
    limit: int | None = None,
    out: Path = Path("runs"),
    folder: Path | None = None,
    resume: Path | None = None,
    command: str = "",
    progress: OnProgress | None = None,
) -> RunPlan:
    """Loads the rows, chooses those to score, and makes the run's folder or checks an earlier one.

    Args:
        limit: rows to score; 0: all. Default: that of the resumed run, else the scenario's, else
            200 on a CPU and all on GPUs.
        folder: the run's folder itself; default: a new one in ``out``.
        resume: folder of an interrupted run.

    Raises:
        ScenarioError: no task, or ``resume`` is the folder of something else.
        DataError, DownloadError: the rows cannot be loaded.
    """
    scenario, data = resolved.scenario, resolved.data
    chosen = pick_methods(methods)
    check_methods(resolved.wire.spec, chosen, data)
    if data is None:
        hint = "Add a task, or use it from Python: agentwire.open(...)."
        if "bench" in scenario.model_fields_set:
            hint = f"It measures speed: `agentwire bench all {resolved.source or '<scenario>'}`."
        raise ScenarioError(
            f"The scenario {scenario.name} has no `task:`, so there is nothing to score.", hint=hint
        )
    earlier = _read_config(resume) if resume else None
    limit = _limit(resolved, limit, earlier)
    dataset = load_rows(data.dataset, data.split, config=config, path=data.path, progress=progress)
    rows = tuple(choose_rows(len(dataset), limit, scenario.seed))
    plan = RunPlan(
        resolved=resolved,
        methods=chosen,
        dataset=dataset,
        rows=rows,
        row_sha256=rows_sha256(dataset.rows[i] for i in rows),
        label_words=load_definition(data.dataset).label_words,
        limit=limit,
        folder=resume or folder or new_folder(out, scenario.name),
        command=command,
        resumed=resume is not None,
    )
    if earlier is not None:
        check_unchanged(plan.folder, earlier["run"], plan.settings())
    return plan


def _limit(resolved: Resolved, limit: int | None, earlier: dict[str, Any] | None) -> int:
    if limit is not None:
        return limit
    if earlier is not None:
        return int(earlier["limit"])
    if resolved.scenario.limit is not None:
        return resolved.scenario.limit
    return CPU_LIMIT if resolved.on_cpu else 0


def new_folder(out: Path, scenario: str) -> Path:
    """Makes ``out``/<time>-<scenario>; raises InputError if it cannot be written."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{scenario}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = out / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise InputError(
            f"The folder for runs, {out}, cannot be written: {error.strerror}.",
            hint="Give another one with --out.",
        ) from None
    raise InputError(f"{out} has too many runs of this second.", hint="Try again.")


def write_config(plan: RunPlan) -> None:
    """Writes config.json; call it while the run's folder is locked."""
    content = {
        "run": plan.settings(),
        "limit": plan.limit,
        "methods": [method.name for method in plan.methods],
        **plan.resolved.to_json(),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (plan.folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    hint = "Give the folder of an interrupted run, such as runs/<time>-<scenario>."
    try:
        content = json.loads(read_regular(folder / CONFIG_FILE))
    except FileNotFoundError:
        raise ScenarioError(f"{folder} has no run to resume.", hint=hint) from None
    except (OSError, ValueError, RecursionError):
        raise ScenarioError(f"{folder / CONFIG_FILE} cannot be read.", hint=hint) from None
    kinds = {"limit": int, "methods": list, "run": dict}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kind) for key, kind in kinds.items()
    ):
        raise ScenarioError(f"{folder / CONFIG_FILE} is not of a run.", hint=hint)
    return content


def methods_of(folder: Path) -> list[str]:
    """The methods of an interrupted run."""
    return [str(name) for name in _read_config(folder)["methods"]]


def check_unchanged(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], where: str = ""
) -> None:
    """Refuses to resume a run or matrix whose settings have changed; names the first that has."""
    for key in dict.fromkeys([*now, *before]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = ({str(i): item for i, item in enumerate(part)} for part in (old, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            check_unchanged(folder, old, new, f"{where}{key}.")
        elif old != new:
            raise ScenarioError(
                f"{folder} cannot be resumed: its {where}{key} was {old!r}, now it is {new!r}.",
                hint="Leave --resume out to start a new run, or restore what has changed.",
            )
