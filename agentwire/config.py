"""Configuration from environment variables. No other module reads the environment.

Variables (all optional):

* ``AGENTWIRE_HOME``: cache folder for downloaded models, data and bridges.
* ``AGENTWIRE_DATA``: folder of datasets in the JSONL format (``<folder>/<name>/dataset.json``).
* ``AGENTWIRE_BRIDGES``: folders of bridges, separated as in ``PATH``.
* ``AGENTWIRE_API_KEYS``: API keys of the gateway, ``name=key`` separated by commas.
* ``AGENTWIRE_KEYS``: folder of CURVE keys for agents on other machines.
* ``AGENTWIRE_OFFLINE``, ``HF_HUB_OFFLINE``: ``1`` forbids access to the hub.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import platformdirs

from agentwire.errors import CacheError, ScenarioError

_TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True, slots=True)
class Config:
    """Folders and switches of this process.

    Attributes:
        home: cache folder; may not exist yet.
        data: the user's dataset folder.
        bridges: extra folders to search for bridges, in order.
        offline: never access the model and dataset hub (its local cache may be read).
        api_keys: of the gateway, unparsed.
        keys: folder of CURVE keys.
    """

    home: Path
    data: Path | None = None
    bridges: tuple[Path, ...] = ()
    offline: bool = False
    api_keys: str = field(default="", repr=False)
    keys: Path = Path()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Reads ``environ``, by default ``os.environ``."""
        env = os.environ if environ is None else environ
        home = env.get("AGENTWIRE_HOME") or platformdirs.user_cache_dir("agentwire")
        data = env.get("AGENTWIRE_DATA")
        bridges = env.get("AGENTWIRE_BRIDGES", "")
        user_keys = Path(platformdirs.user_config_dir("agentwire")) / "keys"
        return cls(
            home=Path(home).expanduser().absolute(),
            data=Path(data).expanduser().absolute() if data else None,
            bridges=tuple(
                Path(part).expanduser().absolute() for part in bridges.split(os.pathsep) if part
            ),
            offline=any(
                env.get(name, "").strip().lower() in _TRUE
                for name in ("AGENTWIRE_OFFLINE", "HF_HUB_OFFLINE")
            ),
            api_keys=env.get("AGENTWIRE_API_KEYS", ""),
            keys=Path(env.get("AGENTWIRE_KEYS") or user_keys).expanduser().absolute(),
        )

    @property
    def models(self) -> Path:
        """Cached models of the package registry, one folder each."""
        return self.home / "models"

    @property
    def datasets(self) -> Path:
        """Cached datasets, one folder each."""
        return self.home / "datasets"

    @property
    def bridge_cache(self) -> Path:
        """Bridges in the user cache, one folder each."""
        return self.home / "bridges"


def set_defaults(variables: Mapping[str, str]) -> None:
    """Sets environment variables for libraries, unless the user has set them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def show_gpu(index: int) -> None:
    """Hides all GPUs but the ``index``-th from libraries that are loaded afterwards."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else str(index)


def lock_file(file: Path, what: str) -> TextIO:
    """Locks ``file`` until the returned file is closed or this process ends, however it ends.

    Args:
        what: what the lock protects, for the error.

    Raises:
        ScenarioError: another process holds the lock (the error names it), or there can be none.
    """
    try:
        # O_NONBLOCK: opening a fifo must not wait for its other end.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        held = os.fdopen(os.open(file, flags, 0o600), "r+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise ScenarioError(
            f"{file} cannot be opened: {error.strerror}.", hint="Check the folder and its owner."
        ) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        busy = isinstance(error, BlockingIOError)
        holder = held.read(200).strip() if busy else ""
        held.close()
        if not busy:
            raise ScenarioError(
                f"{file} cannot be locked: {error.strerror}.", hint="Use a local disk."
            ) from None
        raise ScenarioError(
            f"{what} is in use by {holder or 'another process'}.",
            hint="Wait until that process has ended, or stop it.",
        ) from None
    held.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    held.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
    held.flush()
    return held


def ensure_writable(folder: Path) -> Path:
    """Creates ``folder`` and its parents, and checks that a file can be written there. Raises a
    CacheError if not."""
    hint = "Set AGENTWIRE_HOME to a writable folder, or free some space."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"agentwire")
            probe.flush()
    except OSError as error:
        reason = error.strerror or str(error)
        raise CacheError(
            f"The cache folder {folder} cannot be written: {reason}.", hint=hint
        ) from error
    return folder
