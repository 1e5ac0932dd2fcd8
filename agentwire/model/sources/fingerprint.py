"""A model's fingerprint: sha256 over its files as published, never over a converted copy.

* A registry model: the sha256 of its GGUF file, kept in the converted folder's ``source.json`` with
  the sha256 of each converted file.
* Any other folder: sha256 over the lines ``<sha256 of file>  <file name>`` of its weights,
  config.json and tokenizer files, sorted by name (the output of ``sha256sum``).

Results are cached by size and modification time of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agentwire.config import Config
from agentwire.download import sha256_of
from agentwire.errors import ModelError

SOURCE_FILE = "source.json"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_HINT = "Name a folder with config.json, tokenizer files and *.safetensors."


def weight_files(folder: Path) -> list[str]:
    """Names of a folder's weight files, sorted; raises ModelError if any is missing or a pickle."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read: {error}.", hint=_HINT) from error
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        found = (item.name for item in folder.glob("*.safetensors"))
        names = sorted(name for name in found if not name.startswith("consolidated"))
        names = names or sorted(item.name for item in folder.glob("*.gguf"))
    if not names:
        pickled = next((item.name for item in folder.glob("*.bin")), None)
        reason = f" ({pickled} is a pickle, which can run code)" if pickled else ""
        raise ModelError(f"{folder} has no weights in safetensors{reason}.", hint=_HINT)
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder} is incomplete: {name} is missing.", hint=_HINT)
    return names


def published_files(folder: Path) -> list[str]:
    """The files that make up a model's identity, sorted; raises ModelError if incomplete."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json.", hint=_HINT)
    tokenizer = [name for name in _TOKENIZER if (folder / name).is_file()]
    return sorted(["config.json", *tokenizer, *weight_files(folder)])


def fingerprint(folder: Path, *, config: Config | None = None) -> str:
    """The model's fingerprint: hex sha256, cached under ``config`` (None: from the environment).

    Raises:
        ModelError: the folder holds no model, or a converted model was changed.
    """
    source = _read(folder / SOURCE_FILE)
    if source:
        return _of_converted(folder, source)
    names = published_files(folder)
    stamps = _stamps(folder, names)
    kept = _kept_file(folder, config or Config.from_env())
    known = _read(kept)
    if known.get("files") == stamps and isinstance(known.get("fingerprint"), str):
        return str(known["fingerprint"])
    lines = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    _keep(kept, {"folder": str(folder), "files": stamps, "fingerprint": digest})
    return digest


def write_source(folder: Path, name: str, sha256: str, origin: Iterable[str]) -> None:
    """Marks ``folder`` as the converted copy of the published file with this sha256."""
    names = published_files(folder)
    record = {
        "model": name,
        "fingerprint": sha256,
        "origin": list(origin),
        "files": _stamps(folder, names),
        "sha256": {file: sha256_of(folder / file) for file in names},
    }
    _write(folder / SOURCE_FILE, record)


def _of_converted(folder: Path, source: Mapping[str, Any]) -> str:
    files, hashes, digest = (source.get(key) for key in ("files", "sha256", "fingerprint"))
    if not isinstance(hashes, dict) or not isinstance(digest, str):
        raise ModelError(f"{folder / SOURCE_FILE} is damaged.", hint=_pull(source))
    names = published_files(folder)
    stamps = _stamps(folder, names)
    if stamps == files:
        return digest
    for name in sorted({*names, *hashes}):
        if name not in names or sha256_of(folder / name) != hashes.get(name):
            raise ModelError(
                f"{folder / name} was changed since it was converted.", hint=_pull(source)
            )
    _keep(folder / SOURCE_FILE, {**source, "files": stamps})
    return digest


def _pull(source: Mapping[str, Any]) -> str:
    return f"Remove the folder and run `agentwire models pull {source.get('model', '')}`."


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and modification time (ns) of each file."""
    stats = {name: (folder / name).stat() for name in names}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _kept_file(folder: Path, config: Config) -> Path:
    # Not in the folder itself: it may belong to the user or to the hub's cache.
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return config.home / "fingerprints" / f"{key}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _keep(file: Path, record: Mapping[str, Any]) -> None:
    """Caches a result; failures only cost time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, record)
    except OSError:
        return


def _write(file: Path, record: Mapping[str, Any]) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1, sort_keys=True)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
