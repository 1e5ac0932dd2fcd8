"""Reading scenario files: YAML with line numbers, ``use:`` agent files, one-line errors.

``load_scenario`` returns a validated ``Scenario``. Whatever is wrong with the files ends in a
``ScenarioError`` of one line that names the file, the line, the key and what to do next.

An agent may say ``use: some/agent.yaml`` (relative to the scenario): the keys of that file are
taken, and the keys beside ``use:`` override them; mappings such as ``stand_in`` are merged key
by key, and ``stand_in: null`` removes it. Paths in either file are relative to that file.
"""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from agentwire.errors import ScenarioError
from agentwire.scenario.document import Document, Location, Origin, shown_path
from agentwire.spec.registry import suggestion
from agentwire.spec.scenario import Agent, Scenario, fanned


def load_scenario(path: str | Path) -> Scenario:
    """Reads and checks one scenario file.

    Args:
        path: the YAML file.

    Raises:
        ScenarioError: no such file, bad YAML, an unknown key (the nearest known one is named), a
            wire to an unknown agent, or a value that the schema refuses.
    """
    file = Path(path).expanduser()
    document = Document(file)
    data = _expect_mapping(document.value, document.origins[()], "a scenario")
    origins = dict(document.origins)
    _use_agent_files(data, file.parent, origins)
    _absolute_paths(data, origins)
    _spread_wires(data, origins)
    _check_wires(data, origins)
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, Scenario, origins) from None


def load_agent(path: str | Path) -> Agent:
    """Reads and checks one agent file (the target of ``use:``).

    Raises:
        ScenarioError: as ``load_scenario``.
    """
    document = Document(Path(path).expanduser())
    data = _expect_mapping(document.value, document.origins[()], "an agent file")
    try:
        return Agent.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, Agent, document.origins) from None


def _expect_mapping(value: Any, origin: Origin, what: str) -> dict[str, Any]:
    if value is None:
        raise ScenarioError(
            f"{shown_path(origin.file)} is empty.", hint=f"Write {what} into it (see scenarios/)."
        )
    if not isinstance(value, dict):
        raise ScenarioError(
            f"{origin}: {what} must be a mapping of keys, not {_kind(value)}.",
            hint="Start lines with 'key: value' (see scenarios/ and agents/).",
        )
    return value


def _kind(value: object) -> str:
    names: dict[type, str] = {list: "a list", str: "a text", dict: "a mapping", NoneType: "empty"}
    return names.get(type(value), f"a {type(value).__name__}")


# -- use: and paths -------------------------------------------------------------------------


def _use_agent_files(data: dict[str, Any], folder: Path, origins: dict[Location, Origin]) -> None:
    agents = data.get("agents")
    if not isinstance(agents, dict):
        return  # the schema says what is wrong with it
    for name, agent in agents.items():
        if not isinstance(agent, dict) or "use" not in agent:
            continue
        origin = origins[("agents", name, "use")]
        target = agent.pop("use")
        if not isinstance(target, str):
            raise ScenarioError(
                f"{origin}: agents.{name}.use must be the path of an agent file, "
                f"not {_kind(target)}.",
                hint="For example: use: ../agents/llama.yaml",
            )
        try:
            used = Document((folder / target).expanduser())
        except ScenarioError as error:
            raise ScenarioError(f"{origin}: {error.message}", hint=error.hint) from None
        base = _expect_mapping(used.value, used.origins[()], "an agent file")
        for path, place in used.origins.items():
            origins.setdefault(("agents", name, *path), place)
        agents[name] = _merged(base, agent)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _absolute_paths(data: dict[str, Any], origins: dict[Location, Origin]) -> None:
    """Makes ``path:`` and ``model: ./folder`` absolute, relative to the file that says them."""

    def walk(value: Any, path: Location) -> None:
        if isinstance(value, list):
            for i, item in enumerate(value):
                walk(item, (*path, i))
        elif isinstance(value, dict):
            for key, item in value.items():
                here = (*path, key)
                local = key == "path" or (key == "model" and _is_local(item))
                if local and isinstance(item, str):
                    base = origins.get(here, origins[()]).file.parent
                    value[key] = str((base / Path(item).expanduser()).resolve())
                else:
                    walk(item, here)

    walk(data, ())


def _is_local(model: Any) -> bool:
    return isinstance(model, str) and model.startswith(("./", "../", "/", "~"))


def _spread_wires(data: dict[str, Any], origins: dict[Location, Origin]) -> None:
    """Makes one wire for each end of ``to: [a, b]``, where lines can still be named."""
    wires = data.get("wires")
    if not isinstance(wires, list):
        return
    spread: list[Any] = []
    places: dict[Location, Origin] = {}
    for i, wire in enumerate(wires):
        below = {at[2:]: origin for at, origin in origins.items() if at[:2] == ("wires", i)}
        for one in fanned(wire):
            places |= {("wires", len(spread), *at): origin for at, origin in below.items()}
            spread.append(one)
    for at in [at for at in origins if at[:1] == ("wires",) and len(at) > 1]:
        del origins[at]
    origins |= places
    data["wires"] = spread


def _check_wires(data: dict[str, Any], origins: dict[Location, Origin]) -> None:
    """The schema checks this too; here the line and the nearest agent can be named."""
    agents, wires = data.get("agents"), data.get("wires")
    if not isinstance(agents, dict) or not isinstance(wires, list):
        return
    for i, wire in enumerate(wires):
        if not isinstance(wire, dict):
            continue
        for end in ("from", "to"):
            name = wire.get(end)
            if isinstance(name, str) and name not in agents:
                origin = _nearest(origins, ("wires", i, end))
                raise ScenarioError(
                    f"{origin}: wires[{i}].{end} names the agent {name!r}, which is not defined.",
                    hint=suggestion(name, agents, "Agents of this scenario"),
                )
    matrix = data.get("matrix")
    axis = matrix.get("wires") if isinstance(matrix, dict) else None
    known = list(dict.fromkeys(_wire_name(w) for w in wires if isinstance(w, dict)))
    for i, name in enumerate(axis if isinstance(axis, list) else []):
        if isinstance(name, str) and name not in known:
            raise ScenarioError(
                f"{_nearest(origins, ('matrix', 'wires', i))}: matrix.wires[{i}] names the wire "
                f"{name!r}, which is not defined.",
                hint=suggestion(name, known, "Wires of this scenario"),
            )


# -- errors ---------------------------------------------------------------------------------


def _one_line(
    error: ValidationError, model: type[BaseModel], origins: dict[Location, Origin]
) -> ScenarioError:
    """The first validation error as one line; how many more there are is said."""
    errors = error.errors(include_url=False)
    # A mistyped key also makes the right one "missing": the mistyped one is the cause.
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    # "[key]" is pydantic's marker for a bad key of a mapping, not a part of the path.
    location: Location = tuple(part for part in first["loc"] if part != "[key]")
    origin = _nearest(origins, location)
    key = _dotted(location)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        if len(location) == 3 and location[0] == "agents":
            known.add("use")
        return ScenarioError(
            f"{origin}: unknown key {key!r}{more}.",
            hint=suggestion(str(location[-1]), known, "Known keys here"),
        )
    if first["type"] == "missing":
        return ScenarioError(
            f"{origin}: the key {key!r} is missing{more}.", hint="Add it (see scenarios/)."
        )
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    prefix = f"{key}: " if key else ""
    hint = "Correct that value."
    if first["type"] == "literal_error":
        hint = suggestion(str(first["input"]), _choices(message), "Choices")
    elif first["type"] == "string_pattern_mismatch" and key.endswith("device"):
        hint = "Devices are auto, cpu, cuda:0, cuda:1, …"
    elif first["type"] == "string_pattern_mismatch":
        hint = "Names are lower case letters, digits, _ and -, 63 at most."
    return ScenarioError(f"{origin}: {prefix}{message}{given}{more}.", hint=hint)


def _choices(message: str) -> list[str]:
    """The words that pydantic lists in ``Input should be 'a', 'b' or 'c'``."""
    return message.split("'")[1::2]


def _wire_name(wire: dict[str, Any]) -> str:
    """As ``WireSpec.set_name``, of a wire that may not be valid."""
    senders = wire.get("joint") or [wire.get("from")]
    return f"{'+'.join(map(str, senders))}->{wire.get('to')}"


def _nearest(origins: dict[Location, Origin], location: Location) -> Origin:
    while location not in origins:
        location = location[:-1]
    return origins[location]


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _known_keys(model: type[BaseModel], location: Location) -> set[str]:
    """The keys that the schema knows at ``location``."""
    kind: Any = model
    for part in location:
        kind = _inner(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = {f.alias or name: f for name, f in kind.model_fields.items()}
            if part not in fields:
                return set()
            kind = fields[str(part)].annotation
        else:
            arguments = get_args(kind)
            kind = arguments[-1] if arguments else None
    kind = _inner(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {f.alias or name for name, f in kind.model_fields.items()}
    return set()


def _inner(kind: Any) -> Any:
    """Takes ``Annotated`` and ``| None`` off a type."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = next(a for a in get_args(kind) if a is not NoneType)
    return kind
