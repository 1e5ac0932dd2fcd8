"""What this machine has: devices, models, data and bridges.

Queries are cheap: nothing is downloaded or loaded, and torch is imported only where there may be a
GPU. Tests give ``resolve`` their own inventory.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import psutil

from agentwire.config import Config, real_path
from agentwire.errors import DataError, DeviceError, InputError, ModelError
from agentwire.model.sources import lookup, random_weights, registry
from agentwire.spec.backends import BACKENDS
from agentwire.spec.scenario import DataChoice, ModelChoice
from agentwire.task import datasets

PROJECT_BRIDGES = "bridges"
_PACKAGE = Path(__file__).resolve().parent.parent
# An installed package contains the bridges; in a checkout they are beside it.
PACKAGE_BRIDGES = (_PACKAGE / PROJECT_BRIDGES, _PACKAGE.parent / PROJECT_BRIDGES)
_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class WeightsLocation:
    """Where the weights of a model are.

    Attributes:
        folder: the local folder; None if they are not here or not needed.
        kind: where such a model comes from.
        needed: whether the model needs weights at all.
        fetchable: whether ``fetch`` can download them.
        detail: a phrase for people.
    """

    folder: Path | None
    kind: Literal["local", "registry", "hub"] = "local"
    needed: bool = True
    fetchable: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a model cannot run here."""

    reason: str
    hint: str
    kind: Literal["device", "model", "library"]

    def error(self, where: str) -> InputError:
        """The error for a model without a stand-in."""
        kind = DeviceError if self.kind == "device" else ModelError
        return kind(f"{where} cannot run here: {self.reason}.", hint=self.hint)


class Inventory:
    """This machine.

    Args:
        ask_hub: check over the network that the hub has a dataset, instead of trusting its name.
    """

    def __init__(self, config: Config, *, ask_hub: bool = False) -> None:
        self.config = config
        self._ask_hub = ask_hub

    @classmethod
    def here(cls, *, ask_hub: bool = False) -> Inventory:
        """This machine, as the environment describes it."""
        return cls(Config.from_env(), ask_hub=ask_hub)

    # -- devices

    @cached_property
    def _gpus(self) -> int:
        linux = platform.system() == "Linux"
        if linux and not any(os.path.exists(node) for node in _GPU_NODES):
            return 0  # without a driver there is no need to import torch
        try:
            import torch
        except ImportError:
            return 0
        return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0

    def gpus(self) -> int:
        """Number of CUDA GPUs that torch can use."""
        return self._gpus

    def cpus(self) -> int:
        """Number of physical cores that this process may use."""
        try:
            allowed = len(os.sched_getaffinity(0))
        except AttributeError:  # not on every system
            allowed = os.cpu_count() or 1
        return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))

    # -- models

    def unavailable(self, choice: ModelChoice) -> Unavailable | None:
        """Why this model cannot run on its device here; None if it can. Raises a ModelError if no
        such model exists."""
        if library := self.missing_library(choice):
            return library
        weights = self._missing_weights(choice)
        problems = map(self._missing_device, choice.devices or [choice.device])
        device = next(filter(None, problems), None)
        if device and weights:
            return replace(device, reason=f"{device.reason}, and {weights.reason}")
        return device or weights

    def missing_library(self, choice: ModelChoice) -> Unavailable | None:
        """The library that this choice's backend needs, if it is not here."""
        library = BACKENDS.get(choice.backend).library
        if library is None or self.installed(library.module):
            return None
        return Unavailable(f"{library.title} is not installed", library.install, "library")

    def installed(self, library: str) -> bool:
        """Whether this Python can import a library; imports nothing."""
        return importlib.util.find_spec(library) is not None

    def _missing_device(self, device: str) -> Unavailable | None:
        if not device.startswith("cuda:"):
            return None
        gpus, index = self.gpus(), int(device.removeprefix("cuda:"))
        if index < gpus:
            return None
        there = ", ".join(f"cuda:{i}" for i in range(gpus)) or "none"
        return Unavailable(
            f"{device} is not there (GPUs here: {there})",
            "Give --device cpu or --device cuda:0, or set `device: auto` in the scenario.",
            "device",
        )

    def _missing_weights(self, choice: ModelChoice) -> Unavailable | None:
        location = self.locate(choice)
        if location.needed and location.folder is None and location.kind != "registry":
            return Unavailable(
                f"its weights are not here: {location.detail}",
                self.how_to_get("model", choice.model),
                "model",
            )
        return None

    def locate(self, choice: ModelChoice) -> WeightsLocation:
        """Where the weights are. Raises a ModelError if no such model exists."""
        kind = BACKENDS.get(choice.backend)
        if not kind.needs_weights:
            return WeightsLocation(None, needed=False, detail=kind.summary)
        if choice.weights == "random":
            random_weights.shape(choice.model)
            return WeightsLocation(None, needed=False, detail="random weights")
        found = lookup.locate(choice.model, config=self.config, path=choice.path)
        return WeightsLocation(
            found.folder, kind=found.kind, fetchable=found.fetchable, detail=found.detail
        )

    def fetch(self, model: str, progress: Callable[[str, float], None] | None) -> Path:
        """Downloads a model and converts it if necessary; its folder.

        Raises:
            ModelError, DownloadError, CacheError: the model cannot be downloaded.
        """
        return lookup.fetch(model, config=self.config, progress=progress)

    def fingerprint(self, choice: ModelChoice) -> str | None:
        """The model's fingerprint, if it is known without reading the weights."""
        kind = BACKENDS.get(choice.backend)
        if kind.fingerprint is not None:
            return kind.fingerprint(choice.model)
        if choice.weights == "random":
            return random_weights.fingerprint(choice.model)
        if choice.path is None and choice.model in registry.MODELS:
            return registry.MODELS[choice.model].sha256
        return None

    # -- data

    def data_problem(self, choice: DataChoice) -> str | None:
        """Why these rows are not available here; None if they are."""
        place = datasets.where(choice.dataset, choice.split, config=self.config, path=choice.path)
        if not place and choice.path is None:
            return self._why_no_data(choice)
        if (place == "hub" and self._ask_hub) or not place:
            try:
                datasets.load_rows(
                    choice.dataset, choice.split, config=self.config, path=choice.path
                )
            except DataError as error:
                if choice.path is not None:
                    raise
                return _as_reason(error)
        return None

    def _why_no_data(self, choice: DataChoice) -> str:
        try:
            datasets.load_rows(
                choice.dataset, choice.split, config=self.config, allow_download=False
            )
        except DataError as error:
            return _as_reason(error)
        return "it is not here"

    # -- bridges

    def bridge_folders(self, source: Path | None = None) -> list[Path]:
        """Folders with bridges in search order, after the scenario's own folder."""
        project = Path.cwd() / PROJECT_BRIDGES
        beside = [real_path(source).parent.parent / PROJECT_BRIDGES] if source else []
        return [
            *beside,
            project,
            *self.config.bridges,
            self.config.bridge_cache,
            *PACKAGE_BRIDGES,
        ]

    # -- words

    def how_to_get(self, kind: str, name: str) -> str:
        """The next step for a model or dataset that is not here."""
        if kind == "dataset":
            return (
                f"Set AGENTWIRE_DATA to a folder that holds {name}/, or `path:` in the scenario "
                "(`agentwire data list` shows what is here)."
            )
        return (
            f"Get the weights with `agentwire models pull {name}`, or set `path:` to their folder "
            "(`agentwire doctor` shows what is here)."
        )


def _as_reason(error: DataError) -> str:
    """An error's message as the end of a sentence."""
    return error.message[:1].lower() + error.message[1:].rstrip(".")
