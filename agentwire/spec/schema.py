"""Validates what a YAML file says, with one-line errors that name file, line, key and next step."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from agentwire.errors import ScenarioError
from agentwire.spec.document import Document, KeyPath, SourceLine, shown_path
from agentwire.spec.registry import suggestion

Lines = dict[KeyPath, SourceLine]
Model = TypeVar("Model", bound=BaseModel)


def mapping_of(document: Document, what: str) -> dict[str, Any]:
    """The top-level keys of a file; raises ScenarioError if it does not hold ``what``."""
    value = document.value
    if value is None:
        raise ScenarioError(
            f"{shown_path(document.file)} is empty.", hint=f"Write {what} (see scenarios/)."
        )
    if not isinstance(value, dict):
        raise ScenarioError(
            f"{document.lines[()]}: {what} must be a mapping of keys, not {kind_of(value)}.",
            hint="Start lines with 'key: value' (see scenarios/ and agents/).",
        )
    return value


def kind_of(value: object) -> str:
    """A value's kind as YAML calls it."""
    names: dict[type, str] = {list: "a list", str: "a text", dict: "a mapping", NoneType: "empty"}
    return names.get(type(value), f"a {type(value).__name__}")


def validate(model: type[Model], data: Mapping[str, Any], lines: Lines) -> Model:
    """The data as ``model``; raises ScenarioError for the first mistake and counts the others."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _one_line(error, model, lines) from None


def _one_line(error: ValidationError, model: type[BaseModel], lines: Lines) -> ScenarioError:
    errors = error.errors(include_url=False)
    # A mistyped key also makes the right one "missing": the mistyped one is the cause.
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
    # "[key]" is pydantic's marker for a bad key of a mapping, not a part of the path.
    path: KeyPath = tuple(part for part in first["loc"] if part != "[key]")
    line = nearest_line(lines, path)
    key = _dotted(path)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        return ScenarioError(
            f"{line}: unknown key {key!r}{more}.",
            hint=suggestion(str(path[-1]), known, "Known keys here"),
        )
    if first["type"] == "missing":
        return ScenarioError(
            f"{line}: the key {key!r} is missing{more}.", hint="Add it (see scenarios/)."
        )
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    prefix = f"{key}: " if key else ""
    hint = "Correct that value."
    if first["type"] == "literal_error":
        choices = message.split("'")[1::2]  # Input should be 'a', 'b' or 'c'
        hint = suggestion(str(first["input"]), choices, "Choices")
    elif first["type"] == "string_pattern_mismatch" and key.endswith("device"):
        hint = "Devices are auto, cpu, cuda:0, cuda:1, …"
    elif first["type"] == "string_pattern_mismatch":
        hint = "Names have at most 63 lower case letters, digits, _ and -."
    return ScenarioError(f"{line}: {prefix}{message}{given}{more}.", hint=hint)


def nearest_line(lines: Lines, path: KeyPath) -> SourceLine:
    """The line of a key, or of the nearest mapping around it."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _known_keys(model: type[BaseModel], path: KeyPath) -> set[str]:
    """The keys that the schema knows at ``path``."""
    kind: Any = model
    for part in path:
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
        known = {f.alias or name for name, f in kind.model_fields.items()}
        return known | getattr(kind, "FILE_KEYS", set())
    return set()


def _inner(kind: Any) -> Any:
    """The type inside ``Annotated`` and ``| None``."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = next(a for a in get_args(kind) if a is not NoneType)
    return kind
