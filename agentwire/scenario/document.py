"""YAML files as plain values that remember the line of every key."""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agentwire.errors import ScenarioError

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 20_000
"""A scenario is small. The caps stop an alias bomb (nested YAML anchors) from eating memory."""

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a key or value was written."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}"


class Document:
    """A YAML file as plain values, and the origin of every key path in it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.origins: dict[Location, Origin] = {(): Origin(file, 1)}
        self._nodes = 0
        self.value = self._read()

    def _read(self) -> Any:
        text = _read_text(self.file)
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            return None if node is None else self._value(loader, node, ())
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            mark = getattr(error, "problem_mark", None)
            where = f"{shown_path(self.file)}:{mark.line + 1}" if mark else shown_path(self.file)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            excerpt = f" in {_line(text, mark.line)!r}" if mark else ""
            raise ScenarioError(
                f"{where}: not valid YAML: {problem}{excerpt}.",
                hint="Check the indentation, colons and brackets of that line and the one above.",
            ) from None

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, path: Location) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > 32:
            raise ScenarioError(
                f"{shown_path(self.file)}: too many or too deeply nested values.",
                hint="Write the values out; a scenario needs no nested YAML anchors.",
            )
        self.origins.setdefault(path, Origin(self.file, node.start_mark.line + 1))
        if not node.tag.startswith("tag:yaml.org,2002:") or ":python/" in node.tag:
            raise yaml.constructor.ConstructorError(
                problem=f"the tag {node.tag!r} is not known here", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            return self._mapping(loader, node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(loader, item, (*path, i)) for i, item in enumerate(node.value)]
        return loader.construct_object(node)

    def _mapping(
        self, loader: yaml.SafeLoader, node: yaml.MappingNode, path: Location
    ) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key: Hashable = loader.construct_object(key_node)
            name = str(key)
            origin = Origin(self.file, key_node.start_mark.line + 1)
            if name in mapping:
                raise ScenarioError(
                    f"{origin}: the key {name!r} is given twice.", hint="Keep one of them."
                )
            self.origins[(*path, name)] = origin
            mapping[name] = self._value(loader, value_node, (*path, name))
        return mapping


# -- reading --------------------------------------------------------------------------------


def _read_text(file: Path) -> str:
    try:
        if file.is_dir():
            raise ScenarioError(
                f"{shown_path(file)} is a folder, not a scenario file.",
                hint=_files_nearby(file, file.name),
            )
        raw = file.read_bytes()
    except FileNotFoundError:
        raise ScenarioError(
            f"{shown_path(file)}: no such file.", hint=_files_nearby(file.parent, file.name)
        ) from None
    except OSError as error:
        raise ScenarioError(
            f"{shown_path(file)} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(
            f"{shown_path(file)} is larger than {MAX_FILE_BYTES >> 10} KiB.",
            hint="Is it really a scenario file?",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ScenarioError(
            f"{shown_path(file)}:{line}: not UTF-8 text.", hint="Save the file as UTF-8."
        ) from None


def _files_nearby(folder: Path, name: str) -> str:
    """A hint that names the scenario file that was probably meant."""
    for place in (folder, Path("scenarios")):
        if place.is_dir():
            found = {p.name: p for p in sorted(place.glob("*.yaml"))}
            close = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            if close:
                return f"Did you mean {shown_path(found[close[0]])}?"
            if found:
                return f"Files in {shown_path(place)}: {', '.join(found)}."
    return "Give the path of a scenario file, such as scenarios/llama_to_mistral_sst2.yaml."


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number].strip()[:80] if number < len(lines) else "end of file"


def shown_path(path: Path) -> str:
    """The path as a user would type it: relative to the working folder where that is shorter."""
    try:
        relative = str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
    return relative
