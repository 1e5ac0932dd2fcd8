"""Reads the rows of a dataset from JSON Lines, gzipped or not; errors name the line.

Format (UTF-8, one object a line): ``{"text": "...", "label": 0}``, where a label is an index into
the task's labels, or one of them; of questions ``{"context": "...", "question": "...", "answers":
["..."]}`` with an optional ``id``. Other keys are ignored. Questions may also be in one JSON file
of SQuAD v1.1's own nested form (``.json``).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agentwire.config import open_regular
from agentwire.errors import DataError
from agentwire.spec.registry import suggestion

_WORDS = re.compile(r"\w+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HINT = 'Each line must be like {"text": "some text", "label": 0}.'
_ANSWER_HINT = (
    'Each line must be like {"context": "a text", "question": "about it?", "answers": ["one"]}.'
)


class Example(NamedTuple):
    """One row: the text, and the index of its class."""

    text: str
    label: int


class AnswerRow(NamedTuple):
    """A question about a text. Any of ``answers`` is right."""

    id: str
    text: str
    question: str
    answers: tuple[str, ...]


def normalise(text: str) -> str:
    """The words of a text: NFKC, lower case, no punctuation, one space between them.

    Splits and overlap checks treat two texts with the same words as one sentence.
    """
    return " ".join(_WORDS.findall(unicodedata.normalize("NFKC", text).lower()))


def rows_sha256(rows: Iterable[Example | AnswerRow]) -> str:
    """Hex sha256 over the rows in order, independent of the file they came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row), ensure_ascii=False).encode())
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


def read_answers(file: Path) -> tuple[AnswerRow, ...]:
    """The rows of a file of questions: JSON Lines, or SQuAD's own JSON.

    Raises:
        DataError: as ``read_jsonl``.
    """
    found = _squad_objects(file) if file.suffix == ".json" else _objects(file, _ANSWER_HINT)
    rows = tuple(_answer_row(where, value) for where, value in found)
    if not rows:
        raise DataError(f"{file} holds no rows.", hint=_ANSWER_HINT)
    return rows


def _squad_objects(file: Path) -> Iterator[tuple[str, object]]:
    """The questions of SQuAD's articles in the form of our lines."""
    try:
        with open_regular(file) as stream:
            articles = json.load(stream)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [answer["text"] for answer in asked["answers"]]
                    yield (
                        f"{file}: question {asked['id']}",
                        {
                            "id": asked["id"],
                            "context": paragraph["context"],
                            "question": asked["question"],
                            "answers": answers,
                        },
                    )
    except OSError as error:
        raise _unreadable(file, error) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} is not in SQuAD's own JSON form.",
            hint='Expected {"data": [{"paragraphs": [{"context", "qas"}]}]}, as in dev-v1.1.json.',
        ) from error


def _answer_row(where: str, value: object) -> AnswerRow:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object.", hint=_ANSWER_HINT)
    text = _text(where, value.get("context"), "context", _ANSWER_HINT)
    question = _text(where, value.get("question"), "question", _ANSWER_HINT)
    answers = value.get("answers")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"{where}: `answers` is not a list of texts.", hint=_ANSWER_HINT)
    known = tuple(_text(where, answer, "answers", _ANSWER_HINT) for answer in answers)
    key = hashlib.sha256(json.dumps([text, question]).encode()).hexdigest()[:16]
    return AnswerRow(str(value.get("id", f"sha-{key}")), text, question, known)


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError(f"{file} cannot be read: {error.strerror or error}.", hint="Check the path.")


def _objects(file: Path, hint: str = _HINT) -> Iterator[tuple[str, object]]:
    try:
        with open_regular(file) as stream:
            lines = gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{file}:{number}"
                try:
                    yield where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{where}: not UTF-8 text.", hint=hint) from error
                except RecursionError as error:
                    raise DataError(
                        f"{where}: not valid JSON (nested too deeply).", hint=hint
                    ) from error
                except ValueError as error:
                    reason = getattr(error, "msg", "a number has too many digits")
                    raise DataError(f"{where}: not valid JSON ({reason}).", hint=hint) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} is not a whole gzip file.", hint="Compress it again, or unpack it."
        ) from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _example(where: str, value: object, classes: int, labels: Sequence[str]) -> Example:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object.", hint=_HINT)
    return checked(where, value.get("text"), value.get("label"), classes, labels)


def checked(
    where: str, text: object, label: object, classes: int, labels: Sequence[str] = ()
) -> Example:
    """A row from outside as an ``Example``."""
    text = _text(where, text, "text", _HINT)
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


def _text(where: str, text: object, key: str, hint: str) -> str:
    """A text from outside: not empty, and made of whole characters."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the row has no `{key}`.", hint=hint)
    if not text.isascii() and _SURROGATE.search(text):
        raise DataError(
            f"{where}: `{key}` holds half of a surrogate pair, which is no character.",
            hint="Write the file as UTF-8 from whole characters.",
        )
    return text
