"""YAML 1.2 files as plain values, with the file and line of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import Node

from agentwire.config import open_regular, real_path
from agentwire.errors import ScenarioError

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 32
"""A scenario is small. The caps stop alias and merge bombs before they are expanded."""

_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "value", "merge")
}

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class SourceLine:
    """Where a key or value was written."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file as plain Python values, and the line of every key."""

    file: Path
    value: Any
    lines: dict[KeyPath, SourceLine]


def read_document(file: Path) -> Document:
    """Reads a YAML file; raises ScenarioError, with the line where there is one."""
    try:
        with open_regular(file) as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ScenarioError(
            f"{shown_path(file)} cannot be read: {error.strerror}.", hint="Check the path."
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(
            f"{shown_path(file)} is larger than {MAX_FILE_BYTES >> 10} KiB.",
            hint="Check that this is the right file.",
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ScenarioError(
            f"{shown_path(file)}:{line}: not UTF-8 text.", hint="Save the file as UTF-8."
        ) from None
    return parse_document(text, file)


def parse_document(text: str, file: Path) -> Document:
    """Parses YAML text; raises ScenarioError, which names ``file``."""
    try:
        _check_size(text, file)
        reader = YAML(typ="rt", pure=True)
        reader.Constructor = _Constructor
        value = reader.load(text)
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1]
        raise _given_twice(key, SourceLine(file, error.problem_mark.line + 1)) from None
    except YAMLError as error:
        raise _invalid(error, text, file) from None
    except ValueError:  # raised bare, without a line, for \U00110000
        raise ScenarioError(
            f"{shown_path(file)}: not valid YAML: a \\U escape is beyond U+10FFFF.",
            hint="Correct that value.",
        ) from None
    lines: dict[KeyPath, SourceLine] = {(): SourceLine(file, 1)}
    return Document(file, _plain(value, (), lines), lines)


def write_document(file: Path, value: Mapping[str, Any]) -> None:
    """Writes plain values as YAML, keys in their order."""
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.width = 100
    with file.open("w", encoding="utf-8") as stream:
        writer.dump(value, stream)


def shown_path(path: Path) -> str:
    """The path relative to the working folder, where it is inside it."""
    try:
        return str(real_path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


class _Constructor(RoundTripConstructor):
    """Reports every value that cannot be converted with its line, and refuses unknown tags."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            raise ConstructorError(
                problem=f"the tag {node.tag!r} is not supported", problem_mark=node.start_mark
            )
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError):  # raised bare for `!!int ""`, `!!bool maybe`, 2026-99-99
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                problem=f"{node.value!r} is not a valid {kind}", problem_mark=node.start_mark
            ) from None


def _check_size(text: str, file: Path) -> None:
    """Counts values as they will be after aliases and merges are expanded, without expanding them.

    Refuses too many, too deep, and an alias inside the value that it names.
    """
    sizes: dict[str, int] = {}  # of anchored values; 0 while the value is still open
    open_values: list[tuple[str | None, int]] = []  # anchor, and the count before it
    count = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_values.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, CollectionStartEvent):
            open_values.append((event.anchor, count))
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 0
        elif isinstance(event, AliasEvent):
            size = sizes.get(event.anchor, 1)  # the loader reports unknown anchors with their line
            count += size or MAX_NODES
        elif isinstance(event, NodeEvent):
            count += 1
        if count > MAX_NODES or len(open_values) > MAX_DEPTH:
            raise ScenarioError(
                f"{shown_path(file)}: too many nested values.",
                hint="Write the values out instead of nesting YAML anchors.",
            )


def _plain(value: Any, path: KeyPath, lines: dict[KeyPath, SourceLine]) -> Any:
    """The loader's value as plain Python objects; notes the line of everything in it."""
    file = lines[()].file
    if isinstance(value, CommentedMap):
        mapping: dict[str, Any] = {}
        for key, item in value.items():
            line = SourceLine(file, _line_of(value, key) + 1)
            if isinstance(key, Mapping | tuple):
                raise ScenarioError(f"{line}: a key is a list or mapping.", hint="Use a word.")
            name = _text(key, line)
            if name in mapping:  # `1:` and `"1":`
                raise _given_twice(name, line)
            lines[(*path, name)] = line
            mapping[name] = _plain(item, (*path, name), lines)
        return mapping
    if isinstance(value, CommentedSeq):
        for index in range(len(value)):
            lines[(*path, index)] = SourceLine(file, value.lc.item(index)[0] + 1)
        return [_plain(item, (*path, index), lines) for index, item in enumerate(value)]
    if isinstance(value, str | TaggedScalar):
        return _text(value.value if isinstance(value, TaggedScalar) else value, lines[path])
    for kind in (bool, int, float):  # the loader's subclasses remember how a number was written
        if isinstance(value, kind):
            if kind is int and not -(1 << 63) <= value < 1 << 63:
                raise ScenarioError(
                    f"{lines[path]}: the number has more than 64 bits.", hint="Correct that value."
                )
            return kind(value)
    return value


def _text(value: object, line: SourceLine) -> str:
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ScenarioError(
            f"{line}: the text holds half of a surrogate pair, which is no character.",
            hint="Write the character itself, or \\U with its 8 hex digits.",
        )
    if "\0" in text:  # which no path, prompt or name can have
        raise ScenarioError(f"{line}: the text holds a zero character.", hint="Remove it.")
    return text


def _given_twice(key: str, line: SourceLine) -> ScenarioError:
    return ScenarioError(f"{line}: the key {key!r} is given twice.", hint="Remove one of them.")


def _line_of(mapping: CommentedMap, key: Any) -> int:
    """The 0-based line of a key, which may come from a merged mapping."""
    if key in (mapping.lc.data or {}):
        return int(mapping.lc.key(key)[0])
    merged = (source for source in mapping.merge if isinstance(source, Mapping) and key in source)
    source = next(merged, None)
    return _line_of(source, key) if isinstance(source, CommentedMap) else int(mapping.lc.line)


def _invalid(error: YAMLError, text: str, file: Path) -> ScenarioError:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    where: object = shown_path(file) if mark is None else SourceLine(file, mark.line + 1)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    lines = text.split("\n")
    excerpt = ""
    if mark:
        line = lines[mark.line].strip()[:80] if mark.line < len(lines) else "end of file"
        excerpt = f" in {line!r}"
    hint = "Check the indentation, colons and brackets of that line and the one above."
    if isinstance(error, ConstructorError):
        hint = "Correct that value."
    return ScenarioError(f"{where}: not valid YAML: {problem}{excerpt}.", hint=hint)
