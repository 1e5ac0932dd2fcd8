"""Where agentwire keeps and looks for things: the only place that reads the environment.

Variables (all optional):

* ``AGENTWIRE_HOME``: cache folder for downloaded models, data and bridges.
* ``AGENTWIRE_DATA``: folder with datasets in the JSONL format (``<folder>/<name>/dataset.json``).
* ``AGENTWIRE_BRIDGES``: folders with bridges, separated like ``PATH``.
* ``AGENTWIRE_API_KEYS``: keys of the gateway, ``name=key`` separated by commas.
* ``AGENTWIRE_KEYS``: folder of the CURVE keys of agents that join from other machines.
* ``AGENTWIRE_OFFLINE``, ``HF_HUB_OFFLINE``: ``1`` forbids the hub.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from agentwire.errors import CacheError

_TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True, slots=True)
class Config:
    """Folders and switches of this process.

    Attributes:
        home: cache folder; it need not exist yet.
        data: the user's own dataset folder, or None.
        bridges: extra folders in which bridges are looked for, in order.
        api_keys: of the gateway, as given.
        keys: folder of CURVE keys.
        offline: the model and dataset hub must not be asked (its local cache may be read).
    """

    home: Path
    data: Path | None = None
    bridges: tuple[Path, ...] = ()
    offline: bool = False
    api_keys: str = field(default="", repr=False)
    keys: Path = Path()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The configuration that the environment asks for.

        Args:
            environ: read instead of ``os.environ`` (tests).
        """
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
        """Cache of the registry's models, one folder a model."""
        return self.home / "models"

    @property
    def datasets(self) -> Path:
        """Cache of downloaded datasets, one folder a dataset."""
        return self.home / "datasets"

    @property
    def bridge_cache(self) -> Path:
        """Bridges in the user cache, one folder a bridge."""
        return self.home / "bridges"


def set_defaults(variables: Mapping[str, str]) -> None:
    """Sets variables that a library reads when it is imported, where the user has set none."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def show_gpu(index: int) -> None:
    """Lets libraries that start from now on see one GPU only: the ``index``-th of this process."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else str(index)


def ensure_writable(folder: Path) -> Path:
    """Makes ``folder`` (and its parents) and proves that a file can be written there.

    Raises:
        CacheError: it cannot be made or written, with what to set instead.
    """
    hint = "Set AGENTWIRE_HOME to a folder that you can write, or free some space."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"agentwire")
            probe.flush()
    except OSError as error:
        reason = error.strerror or str(error)
        raise CacheError(
            f"The cache folder {folder} cannot be written: {reason}.", hint=hint
        ) from (error)
    return folder
