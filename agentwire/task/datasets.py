"""Loads the rows of a dataset from the first place that has them.

1. ``path``: a JSONL file, or a folder with ``<split>.jsonl`` or ``.jsonl.gz`` (and
   ``dataset.json``);
2. the files that the task's definition names under ``rows``;
3. ``AGENTWIRE_DATA/<name>/<split>.jsonl`` or ``.jsonl.gz``;
4. the hub, with the extra ``agentwire[hub]`` and unless offline;
5. the package registry (``movie_snippets`` only);
6. this package: passkeys are generated, and the split ``sample`` is included (``samples.py``).

Every ``Dataset`` says where it came from. This module never substitutes another dataset.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic

from typing_extensions import TypeVar

from agentwire.config import Config
from agentwire.download import OnProgress, sha256_of
from agentwire.errors import DataError, first_line
from agentwire.task import movie_snippets, passkey, samples
from agentwire.task.definitions import Definition, TaskDefinition, load_definition
from agentwire.task.rows import (
    AnswerRow,
    Example,
    checked,
    read_answers,
    read_jsonl,
    rows_sha256,
)

__all__ = [
    "AnswerRow",
    "Dataset",
    "Example",
    "load_rows",
    "require_split",
    "shares_sentences",
    "where",
]

Row = TypeVar("Row", Example, AnswerRow, default=Example)
TRAIN_SPLIT = "train"
"""The split that all training reads."""


@dataclass(frozen=True, slots=True)
class Dataset(Generic[Row]):
    """The rows of one split, and where they came from: ``Example`` or ``AnswerRow``.

    Attributes:
        name: name of the task.
        rows: in the source's order.
        labels: class names; ``rows[i].label`` is an index into them. Empty for questions.
        provenance: ``source`` (``folder``, ``files``, ``hub``, ``registry``, ``generated``,
            ``sample``), ``location``, ``sha256`` of the source file, ``rows_sha256``, ``licence``,
            and more where the source states it.
    """

    name: str
    split: str
    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    provenance: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.rows)


def load_rows(
    dataset: str,
    split: str,
    *,
    config: Config,
    path: str | Path | None = None,
    allow_download: bool = True,
    progress: OnProgress | None = None,
) -> Dataset[Any]:
    """The rows of one split of a dataset, of the kind that the task's definition says.

    Args:
        dataset: as ``load_definition`` takes it.
        split: ``train``, ``validation``, ``test``, or another one that the source has.
        path: a JSONL file or a folder; no other place is tried then.
        allow_download: whether to ask the hub and the registry for what is not cached.
        progress: called during downloads.

    Raises:
        DataError: unknown dataset, rows not found, no such split, or a bad row.
        DownloadError: the registry's archive cannot be downloaded, or its checksum is wrong.
        CacheError: the cache folder cannot be written.
    """
    task = load_definition(dataset)
    if path is not None:
        return _from_path(task, split, Path(path).expanduser())
    if split in task.rows:
        return _from_files(task, split)
    folder = config.data / task.name if config.data else None
    if folder is not None and _file_of(folder, split):
        return _from_folder(task, split, folder)
    if allow_download and _on_hub(task, split) and not _hub_reason(config):
        return _from_hub(task, split)
    if isinstance(task, TaskDefinition) and task.name == "movie_snippets":
        cached = movie_snippets.cached_file(config.datasets / task.name).is_file()
        if split in movie_snippets.SPLITS and (allow_download or cached):
            return _from_registry(task, split, config, progress)
    made = _included(task, split)
    if made is not None:
        return made
    raise _missing(task, split, config)


def where(dataset: str, split: str, *, config: Config, path: str | Path | None = None) -> str:
    """Where ``load_rows`` would find the rows; reads nothing and uses no network.

    Returns:
        ``path``, ``files``, ``folder``, ``hub``, ``cache``, ``registry`` (a download),
        ``generated``, ``sample``, or ``""``: nowhere.

    Raises:
        DataError: unknown dataset.
    """
    task = load_definition(dataset)
    if path is not None:
        return "path" if Path(path).expanduser().exists() else ""
    if split in task.rows:
        return "files" if all(Path(file).is_file() for file in task.rows[split]) else ""
    if config.data and _file_of(config.data / task.name, split):
        return "folder"
    if _on_hub(task, split) and not _hub_reason(config):
        return "hub"
    if task.name == "movie_snippets" and split in movie_snippets.SPLITS:
        cached = movie_snippets.cached_file(config.datasets / task.name)
        return "cache" if cached.is_file() else "registry"
    if split == samples.SAMPLE_SPLIT and samples.sample_file(task.name):
        return "sample"
    return "generated" if _is_generated(task, split) else ""


def require_split(
    dataset: str, split: str, *, config: Config, path: str | Path | None = None
) -> None:
    """Raises what ``load_rows`` would raise for a split that is nowhere, before any download."""
    if path is None and not where(dataset, split, config=config):
        task = load_definition(dataset)
        if split in task.rows:
            _from_files(task, split)
        raise _missing(task, split, config)
    if path is not None and Path(path).expanduser().is_dir():
        _file_in(Path(path).expanduser(), split)


def shares_sentences(first: str, second: str) -> bool:
    """Whether two *different* datasets are made of the same sentences.

    A bridge trained on one of them must never be scored on the other.
    """
    if first == second:
        return False
    family = load_definition(first).family
    return family is not None and family == load_definition(second).family


# -- folders --------------------------------------------------------------------------------


def _from_path(task: Definition, split: str, path: Path) -> Dataset[Any]:
    if path.is_dir():
        return _from_folder(task, split, path)
    if not path.is_file():
        raise DataError(
            f"{path} does not exist.", hint="Set `path` to a JSONL file or a folder with them."
        )
    return _from_file(task, split, path, {})


def _file_of(folder: Path, split: str) -> Path | None:
    """The file with the rows of a split, if the folder has one."""
    files = (folder / f"{split}{ending}" for ending in (".jsonl", ".jsonl.gz"))
    return next((file for file in files if file.is_file()), None)


def _file_in(folder: Path, split: str) -> Path:
    """The file with the rows of a split; raises DataError if there is none."""
    file = _file_of(folder, split)
    if file is None:
        found = {item.name.partition(".jsonl")[0] for item in folder.glob("*.jsonl*")}
        splits = ", ".join(sorted(found)) or "none"
        raise DataError(
            f"{folder} has no split {split!r}.", hint=f"Splits in that folder: {splits}."
        )
    return file


def _from_folder(task: Definition, split: str, folder: Path) -> Dataset[Any]:
    file = _file_in(folder, split)
    card = _card(folder / "dataset.json")
    labels = card.get("labels")
    if labels is not None and tuple(labels) != task.labels:
        raise DataError(
            f"{folder / 'dataset.json'}: its labels differ from those of {task.name}.",
            hint="Name the right dataset in the scenario, or put the labels into the same order.",
        )
    return _from_file(task, split, file, card)


def _from_files(task: Definition, split: str) -> Dataset[Any]:
    """The rows of the files that a task file names."""
    files = [Path(name) for name in task.rows[split]]
    parts = [_read(task, file) for file in files]
    return _dataset(
        task,
        split,
        tuple(itertools.chain(*parts)),
        source="files",
        location=", ".join(map(str, files)),
        sha256="+".join(map(sha256_of, files)),
        licence=task.licence,
    )


def _from_file(task: Definition, split: str, file: Path, card: Mapping[str, Any]) -> Dataset[Any]:
    rows = _read(task, file)
    digest = sha256_of(file)
    claimed = card.get("splits", {}).get(split, {}).get("sha256")
    if claimed is not None and claimed != digest:
        raise DataError(
            f"{file} is not the file that dataset.json describes "
            f"(sha256 {digest[:12]}…, not {str(claimed)[:12]}…).",
            hint="Restore the file, or write its new sha256 into dataset.json.",
        )
    return _dataset(
        task,
        split,
        rows,
        source="folder",
        location=str(file),
        sha256=digest,
        licence=str(card.get("licence", task.licence)),
        origin=str(card.get("source", "")),
    )


def _read(task: Definition, file: Path) -> tuple[Any, ...]:
    if isinstance(task, TaskDefinition):
        return read_jsonl(file, len(task.labels), task.labels)
    return read_answers(file)


def _card(file: Path) -> Mapping[str, Any]:
    """``dataset.json`` of a folder, or nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8-sig"))
        splits = card.get("splits", {})
        sound = isinstance(card.get("labels", []), list) and all(
            isinstance(split, dict) for split in splits.values()
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(
            f"{file} is not a dataset description.",
            hint='It must be a JSON object with "labels" (a list) and "splits" (an object).',
        )
    return dict(card)


# -- hub and registry -----------------------------------------------------------------------


def _on_hub(task: Definition, split: str) -> bool:
    return task.hub is not None and split in task.hub.splits


def _hub_reason(config: Config) -> str:
    """Why the hub cannot be used; empty if it can."""
    if config.offline:
        return "the hub is off (offline)"
    if importlib.util.find_spec("datasets") is None:
        return "the hub needs `pip install '.[hub]'`"
    return ""


def _from_hub(task: Definition, split: str) -> Dataset:
    from datasets import load_dataset

    hub = task.hub
    if hub is None or not isinstance(task, TaskDefinition):
        raise DataError(f"{task.name} is not on the hub.", hint="Set AGENTWIRE_DATA.")
    name = f"hub:{hub.dataset}"
    try:
        table = load_dataset(hub.dataset, hub.config, split=hub.splits[split])
        names = list(getattr(table.features[hub.label], "names", None) or [])
        columns = [list(table[column]) for column in hub.text]
        classes = list(table[hub.label])
    except Exception as error:  # the library raises whatever its network layers raise
        reason = first_line(error)
        raise DataError(
            f"{task.name} cannot be loaded from the hub ({hub.dataset}): {reason}",
            hint="Check the network, log in if it is gated, or set AGENTWIRE_DATA to a folder.",
        ) from error
    order = _class_order(task, names, name)
    rows = tuple(
        checked(
            f"{name}:{split}:{number}",
            " ".join(texts),
            order.get(label, label) if isinstance(label, int) else label,
            len(task.labels),
        )
        for number, (*texts, label) in enumerate(zip(*columns, classes, strict=True), start=1)
    )
    if not rows:
        raise DataError(f"{name}: {split} holds no rows.", hint="Set AGENTWIRE_DATA instead.")
    return _dataset(
        task, split, rows, source="hub", location=hub.dataset, sha256="", licence=task.licence
    )


def _class_order(task: TaskDefinition, names: Sequence[str], where: str) -> dict[int, int]:
    """The hub's class index -> ours, by class name; empty where the hub gives no names."""
    if not names:
        return {}
    ours = list((task.hub and task.hub.labels) or task.labels)
    if sorted(ours) != sorted(names):
        raise DataError(
            f"{where}: its classes differ from those of {task.name}.",
            hint="Set AGENTWIRE_DATA to a folder with the expected rows.",
        )
    return {index: ours.index(name) for index, name in enumerate(names)}


def _from_registry(
    task: Definition, split: str, config: Config, progress: OnProgress | None
) -> Dataset[Any]:
    file = movie_snippets.fetch(config.datasets / task.name, progress)
    return _dataset(
        task,
        split,
        movie_snippets.parse(file, split),
        source="registry",
        location=movie_snippets.ARCHIVE.requirement,
        sha256=movie_snippets.FILE_SHA256,
        licence=task.licence,
        origin=f"{movie_snippets.FILE}, |mean rating| >= {movie_snippets.NEUTRAL}, split by hash",
    )


# -- in this package ------------------------------------------------------------------------------


def _included(task: Definition, split: str) -> Dataset[Any] | None:
    """Generated rows or the package's sample; None if the split is neither."""
    if _is_generated(task, split):
        return _dataset(
            task,
            split,
            passkey.generate(split, task.name),
            source="generated",
            location="agentwire/task/passkey.py",
            licence=task.licence,
        )
    sample = samples.sample_file(task.name) if split == samples.SAMPLE_SPLIT else None
    if sample is None:
        return None
    with resources.as_file(sample) as file:
        rows = _read(task, file)
        digest = sha256_of(file)
    return _dataset(
        task,
        split,
        rows,
        source="sample",
        location=f"agentwire/task/samples/{sample.name}",
        sha256=digest,
        licence=samples.LICENCE,
        note=samples.sample_note(task.name),
    )


def _is_generated(task: Definition, split: str) -> bool:
    return task.series == passkey.SERIES and split in passkey.SPLITS


def _dataset(
    task: Definition, split: str, rows: tuple[Any, ...], **provenance: str
) -> Dataset[Any]:
    known = {key: value for key, value in provenance.items() if value}
    known["rows_sha256"] = rows_sha256(rows)
    return Dataset(task.name, split, rows, task.labels, known)


def _missing(task: Definition, split: str, config: Config) -> DataError:
    if task.rows:
        return DataError(
            f"The task {task.name} has no split {split!r}.",
            hint=f"Its task file has {', '.join(task.rows)}. Add {split} under `rows`.",
        )
    tried = [f"not in {config.data / task.name}" if config.data else "AGENTWIRE_DATA is not set"]
    if _on_hub(task, split):
        tried.append(_hub_reason(config) or "downloads are off")
    elif task.hub is not None:
        tried.append(f"the hub has only {', '.join(task.hub.splits)}")
    if task.name == "movie_snippets":
        known = split in movie_snippets.SPLITS
        tried.append(
            "not downloaded yet" if known else f"it has {', '.join(movie_snippets.SPLITS)}"
        )
    if samples.sample_file(task.name):
        only = f"has only the split {samples.SAMPLE_SPLIT!r}"
        tried.append(
            f"agentwire's own sample {'is too small to train on' if split == 'train' else only}"
        )
    example = '{"context": "...", "question": "...", "answers": ["..."]}'
    if isinstance(task, TaskDefinition):
        example = (
            f'{{"text": "...", "label": 0}}, with labels 0 to {len(task.labels) - 1} '
            f"(`agentwire data show {task.name}` lists them)"
        )
    return DataError(
        f"The split {split!r} of {task.name} was not found: {'; '.join(tried)}.",
        hint=f"Put {task.name}/{split}.jsonl into a folder and set AGENTWIRE_DATA to that folder. "
        f"Each line is a row, {example}.",
    )
