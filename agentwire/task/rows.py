"""Reads the rows of a classification dataset from JSON Lines; errors name the line.

Format (UTF-8, one object a line): ``{"text": "...", "label": 0}``. A label is an index into the
task's labels, or one of them. Other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agentwire.config import open_regular
from agentwire.errors import DataError
from agentwire.spec.registry import suggestion

_WORDS = re.compile(r"\w+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HINT = 'Each line must be like {"text": "some text", "label": 0}.'


class Example(NamedTuple):
    """One row: the text, and the index of its class."""

    text: str
    label: int


def normalise(text: str) -> str:
    """The words of a text: NFKC, lower case, no punctuation, one space between them.

    Splits and overlap checks treat two texts with the same words as one sentence.
    """
    return " ".join(_WORDS.findall(unicodedata.normalize("NFKC", text).lower()))


def rows_sha256(rows: Iterable[Example]) -> str:
    """Hex sha256 over the rows in order, independent of the file they came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.text, row.label], ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def read_jsonl(file: Path, classes: int, labels: Sequence[str] = ()) -> tuple[Example, ...]:
    """The rows of a JSON Lines file, in order; blank lines are skipped.

    Args:
        classes: number of classes.
        labels: their names, where rows may say those instead of an index.

    Raises:
        DataError: it cannot be read, is empty, or holds a bad row (named as ``file:line``).
    """
    rows = tuple(_example(where, value, classes, labels) for where, value in _objects(file))
    if not rows:
        raise DataError(f"{file} holds no rows.", hint=_HINT)
    return rows


def _objects(file: Path) -> Iterator[tuple[str, object]]:
    try:
        with open_regular(file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{file}:{number}"
                try:
                    yield where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: not UTF-8 text.", hint=_HINT) from error
                except RecursionError as error:
                    raise DataError(
                        f"{where}: not valid JSON (nested too deeply).", hint=_HINT
                    ) from error
                except ValueError as error:
                    reason = getattr(error, "msg", "a number has too many digits")
                    raise DataError(f"{where}: not valid JSON ({reason}).", hint=_HINT) from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror or error}.", hint="Check the path."
        ) from error


def _example(where: str, value: object, classes: int, labels: Sequence[str]) -> Example:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object.", hint=_HINT)
    return checked(where, value.get("text"), value.get("label"), classes, labels)


def checked(
    where: str, text: object, label: object, classes: int, labels: Sequence[str] = ()
) -> Example:
    """A row from outside as an ``Example``."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the row has no `text`.", hint=_HINT)
    if not text.isascii() and _SURROGATE.search(text):
        raise DataError(
            f"{where}: `text` holds half of a surrogate pair, which is no character.",
            hint="Write the file as UTF-8 from whole characters.",
        )
    if isinstance(label, str) and labels:
        if label in labels:
            return Example(text, labels.index(label))
        raise DataError(
            f"{where}: the label {label!r} is not one of the task's.",
            hint=suggestion(label, labels, "Labels"),
        )
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{where}: the row's `label` is not an integer.", hint=_HINT)
    if not 0 <= label < classes:
        raise DataError(
            f"{where}: label {label} is out of range (the task has classes 0 to {classes - 1}).",
            hint="Check that the rows belong to this dataset.",
        )
    return Example(text, label)
