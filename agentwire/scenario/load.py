"""Reads scenario and agent files into the schema, with one-line errors that name file and line.

An agent may say ``use: some/agent.yaml`` (relative to the scenario). The keys of that file are
taken, and the keys beside ``use:`` override them. Mappings such as ``stand_in`` are merged key by
key, and ``stand_in: null`` removes it. Paths are relative to the file that holds them.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from agentwire.config import real_path
from agentwire.errors import ScenarioError
from agentwire.spec.document import Document, KeyPath, read_document, shown_path
from agentwire.spec.registry import suggestion
from agentwire.spec.scenario import Agent, Scenario, fanned
from agentwire.spec.schema import Lines, kind_of, mapping_of, nearest_line, validate


def load_scenario(path: str | Path) -> Scenario:
    """Reads and checks one scenario file.

    Raises:
        ScenarioError: no such file, bad YAML, an unknown key, a wire to an unknown agent, or a
            value that the schema refuses.
    """
    file = Path(path).expanduser()
    document = _read(file)
    data, lines = mapping_of(document, "a scenario"), document.lines
    _use_agent_files(data, file.parent, lines)
    _make_paths_absolute(data, lines)
    _fan_wires(data, lines)
    _check_wires(data, lines)
    return validate(Scenario, data, lines)


def load_agent(path: str | Path) -> Agent:
    """Reads and checks one agent file (the target of ``use:``). Errors as ``load_scenario``."""
    document = _read(Path(path).expanduser())
    return validate(Agent, mapping_of(document, "an agent file"), document.lines)


def _read(file: Path) -> Document:
    if os.path.isdir(file):  # unlike Path.is_dir, False for a name that is too long
        raise ScenarioError(
            f"{shown_path(file)} is a folder, not a scenario file.",
            hint=_files_nearby(file, file.name),
        )
    if not os.path.exists(file):
        raise ScenarioError(
            f"{shown_path(file)}: no such file.", hint=_files_nearby(file.parent, file.name)
        )
    return read_document(file)


def _files_nearby(folder: Path, name: str) -> str:
    """A hint that names the scenario file that was probably meant."""
    for place in (folder, Path("scenarios")):
        if os.path.isdir(place):
            found = {p.name: p for p in sorted(place.glob("*.yaml"))}
            close = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            if close:
                return f"Did you mean {shown_path(found[close[0]])}?"
            if found:
                return f"Files in {shown_path(place)}: {', '.join(found)}."
    return "Give the path of a scenario file, such as scenarios/llama_to_mistral_sst2.yaml."


# -- use: and paths -------------------------------------------------------------------------


def _use_agent_files(data: dict[str, Any], folder: Path, lines: Lines) -> None:
    agents = data.get("agents")
    if not isinstance(agents, dict):
        return  # the schema reports it
    for name, agent in agents.items():
        if not isinstance(agent, dict) or "use" not in agent:
            continue
        line = lines[("agents", name, "use")]
        target = agent.pop("use")
        if not isinstance(target, str):
            raise ScenarioError(
                f"{line}: agents.{name}.use must be the path of an agent file, "
                f"not {kind_of(target)}.",
                hint="For example: use: ../agents/llama.yaml",
            )
        try:
            used = _read((folder / target).expanduser())
        except ScenarioError as error:
            raise ScenarioError(f"{line}: {error.message}", hint=error.hint) from None
        base = mapping_of(used, "an agent file")
        for path, place in used.lines.items():
            lines.setdefault(("agents", name, *path), place)
        agents[name] = _merged(base, agent)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _make_paths_absolute(data: dict[str, Any], lines: Lines) -> None:
    """Resolves ``path:``, ``file:`` and ``model: ./folder`` against the file that holds them."""

    def walk(value: Any, path: KeyPath) -> None:
        if isinstance(value, list):
            for i, item in enumerate(value):
                walk(item, (*path, i))
        elif isinstance(value, dict):
            for key, item in value.items():
                here = (*path, key)
                local = key in ("path", "file") or (key == "model" and _is_local(item))
                if local and isinstance(item, str):
                    base = lines.get(here, lines[()]).file.parent
                    value[key] = str(real_path(base / Path(item).expanduser()))
                else:
                    walk(item, here)

    walk(data, ())


def _is_local(model: Any) -> bool:
    return isinstance(model, str) and model.startswith(("./", "../", "/", "~"))


def _fan_wires(data: dict[str, Any], lines: Lines) -> None:
    """Makes one wire of each end of ``to: [a, b]`` here, where each can still get its line."""
    wires = data.get("wires")
    if not isinstance(wires, list):
        return
    single: list[Any] = []
    moved: Lines = {}
    for i, wire in enumerate(wires):
        below = {path[2:]: line for path, line in lines.items() if path[:2] == ("wires", i)}
        for one in fanned(wire):
            moved |= {("wires", len(single), *path): line for path, line in below.items()}
            single.append(one)
    for path in [path for path in lines if path[:1] == ("wires",) and len(path) > 1]:
        del lines[path]
    lines |= moved
    data["wires"] = single


def _check_wires(data: dict[str, Any], lines: Lines) -> None:
    """Checks names of agents and wires. The schema does too, but it knows no lines."""
    agents, wires = data.get("agents"), data.get("wires")
    if not isinstance(agents, dict) or not isinstance(wires, list):
        return
    for i, wire in enumerate(wires):
        if not isinstance(wire, dict):
            continue
        for end in ("from", "to"):
            name = wire.get(end)
            if isinstance(name, str) and name not in agents:
                raise ScenarioError(
                    f"{nearest_line(lines, ('wires', i, end))}: wires[{i}].{end} names the agent "
                    f"{name!r}, which is not defined.",
                    hint=suggestion(name, agents, "Agents of this scenario"),
                )
    matrix = data.get("matrix")
    axis = matrix.get("wires") if isinstance(matrix, dict) else None
    known = list(dict.fromkeys(_wire_name(w) for w in wires if isinstance(w, dict)))
    for i, name in enumerate(axis if isinstance(axis, list) else []):
        if isinstance(name, str) and name not in known:
            raise ScenarioError(
                f"{nearest_line(lines, ('matrix', 'wires', i))}: matrix.wires[{i}] names the wire "
                f"{name!r}, which is not defined.",
                hint=suggestion(name, known, "Wires of this scenario"),
            )


def _wire_name(wire: dict[str, Any]) -> str:
    """``WireSpec.set_name`` of a wire that may not be valid."""
    senders = wire.get("joint") or [wire.get("from")]
    return f"{'+'.join(map(str, senders))}->{wire.get('to')}"
