"""A model's fingerprint: sha256 over its files as published, never over a converted copy.

* A registry model: the sha256 of its GGUF file, kept in the converted folder's ``source.json`` with
  the sha256 of each converted file.
* Any other folder: sha256 over the lines ``<sha256 of file>  <file name>`` of its weights,
  config.json and tokenizer files, sorted by name (the output of ``sha256sum``).

A result is kept until the machine starts again or a file's size, times or inode change. So a file
that changed on its disk is found at the next start, or by ``agentwire models verify``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from agentwire.config import Config, real_path
from agentwire.download import sha256_of
from agentwire.errors import ModelError

SOURCE_FILE = "source.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
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
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = sorted({str(name) for name in shards})
        except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
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
        if not name.endswith((".safetensors", ".gguf")):
            raise ModelError(
                f"{folder}: {name} is not safetensors; a pickle could run code.", hint=_HINT
            )
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder} is incomplete: {name} is missing.", hint=_HINT)
    return names


def published_files(folder: Path) -> list[str]:
    """The files that make up a model's identity, sorted; raises ModelError if incomplete."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json.", hint=_HINT)
    tokenizer = [name for name in _TOKENIZER if (folder / name).is_file()]
    return sorted(["config.json", *tokenizer, *weight_files(folder)])


def fingerprint(folder: Path, *, config: Config | None = None, fresh: bool = False) -> str:
    """The model's fingerprint: hex sha256, kept under ``config`` (None: from the environment).

    Args:
        fresh: reads every file again.

    Raises:
        ModelError: the folder holds no model, or its files were changed or damaged.
    """
    names = published_files(folder)
    source = _read_source(folder)
    stamps = _stamps(folder, names if source is None else [*names, SOURCE_FILE])
    kept = _kept_file(folder, config or Config.from_env())
    known = _read(kept)
    if not isinstance(known.get("files"), dict) or "fingerprint" not in known:
        known = {}
    if known.get("files") == stamps and known.get("boot") == _boot() and not fresh:
        return str(known["fingerprint"])
    try:
        hashes = {name: sha256_of(folder / name) for name in names}
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} cannot be read: {error.strerror}.", hint=_HINT
        ) from error
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    digest = hashlib.sha256(lines.encode()).hexdigest()
    if source is not None:
        for name in sorted({*names, *source["sha256"]}):
            if hashes.get(name) != source["sha256"].get(name):
                raise ModelError(
                    f"{folder / name} was changed since it was converted.", hint=_pull(folder)
                )
        digest = str(source["fingerprint"])
    elif digest != known.get("fingerprint", digest) and _times(known["files"]) == _times(stamps):
        raise ModelError(
            f"a file in {folder} was damaged: its content changed, but not its times.",
            hint="Check the disk, and replace the model's files.",
        )
    _keep(kept, {"folder": str(folder), "files": stamps, "fingerprint": digest, "boot": _boot()})
    return digest


def write_source(folder: Path, name: str, sha256: str, origin: Iterable[str]) -> None:
    """Marks ``folder`` as the converted copy of the published file with this sha256.

    When it returns, the folder's files are on the disk.
    """
    names = published_files(folder)
    record = {
        "model": name,
        "fingerprint": sha256,
        "origin": list(origin),
        "sha256": {file: sha256_of(folder / file) for file in names},
    }
    _write(folder / SOURCE_FILE, record)
    for item in [*folder.iterdir(), folder]:
        sync(item)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_source(folder: Path) -> dict[str, Any] | None:
    """The record of a conversion; None if the folder is none. Raises ModelError if damaged."""
    file = folder / SOURCE_FILE
    if not file.is_file():
        return None
    source = _read(file)
    hashes, digest = source.get("sha256"), source.get("fingerprint")
    if not (isinstance(hashes, dict) and hashes and isinstance(digest, str) and digest):
        raise ModelError(f"{file} is empty or damaged.", hint=_pull(folder))
    return source


def _pull(folder: Path) -> str:
    return f"Remove the folder {folder} and run `agentwire models pull {folder.name}`."


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size, times of modification and change (ns), and inode of each file."""
    found = {name: (folder / name).stat() for name in names}
    return {n: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for n, s in found.items()}


def _times(stamps: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """What a user's change of a file changes: its size or its time of modification."""
    return {name: list(stamp)[:2] for name, stamp in stamps.items()}


def _boot() -> str:
    """This start of the machine; where it has no id, today."""
    try:
        return _BOOT.read_text("ascii").strip()
    except (OSError, ValueError):
        return date.today().isoformat()


def _kept_file(folder: Path, config: Config) -> Path:
    # Not in the folder itself: it may belong to the user or to the hub's cache.
    key = hashlib.sha256(str(real_path(folder)).encode()).hexdigest()[:32]
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
