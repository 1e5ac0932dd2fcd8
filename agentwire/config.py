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

import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path

import platformdirs

from agentwire.errors import CacheError, InputError, ScenarioError

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


def open_regular(file: Path) -> BufferedReader:
    """Opens a regular file for reading. ``open`` would wait for the other end of a fifo.

    Raises:
        OSError: it cannot be opened, is of another kind, or can be no file's name.
    """
    try:
        stream = os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name", str(file)) from None
    except OSError as error:  # a folder; ``fdopen`` does not know its name
        raise OSError(error.errno, error.strerror, str(file)) from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))
    return stream


def real_path(path: Path) -> Path:
    """The path without links. Unlike ``Path.resolve``, a loop of links is no error."""
    return Path(os.path.realpath(path))


def read_regular(file: Path) -> bytes:
    """The content of a regular file; raises as ``open_regular``."""
    with open_regular(file) as stream:
        return stream.read()


def lock_file(file: Path, what: str) -> FileIO:
    """Locks ``file`` until the returned file is closed or this process ends, however it ends.

    Args:
        what: what the lock protects, for the error.

    Raises:
        ScenarioError: another process holds the lock (the error names it), or there can be none.
    """
    try:
        # O_NONBLOCK: opening a fifo must not wait for its other end.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        held = FileIO(os.open(file, flags, 0o600), "r+")
    except OSError as error:
        raise ScenarioError(
            f"{file} cannot be opened: {error.strerror}.", hint="Check the folder and its owner."
        ) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        held.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
    except BlockingIOError:
        with held:
            holder = held.read(200).decode(errors="replace").strip() or "another process"
        raise ScenarioError(
            f"{what} is in use by {holder}.", hint="Wait until that process has ended, or stop it."
        ) from None
    except OSError as error:
        held.close()
        raise ScenarioError(
            f"{file} cannot be locked: {error.strerror}.", hint="Use a local disk with space."
        ) from None
    return held


def check_names(arguments: Iterable[str]) -> None:
    """Refuses arguments, variables and a working folder that are not UTF-8: they could neither be
    written to JSON nor shown.

    Raises:
        InputError: names the first.
    """
    named = {"variable": os.environ.values(), "argument": arguments, "folder": [os.getcwd()]}
    for what, texts in named.items():
        for text in texts:
            if not text.isascii() and text.encode(errors="replace").decode() != text:
                raise InputError(
                    f"The {what} {text.encode(errors='backslashreplace').decode()} is not UTF-8.",
                    hint="Rename it, or set LANG to a UTF-8 locale.",
                )


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
