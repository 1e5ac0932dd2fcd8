"""Flags of ``lending`` as locked files: the kernel takes down those of a process that is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from agentwire.agent.cpu_sharing import CpuSharing, Neighbour

try:
    import fcntl
except ImportError:  # not on Windows: agents keep to their own threads there
    fcntl = None  # type: ignore[assignment]


class FileFlag:
    """Up while this process holds the file's lock (``flock(2)``).

    Args:
        file: made if it is not there; its folder must be private.
    """

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._up = False

    def take(self) -> bool:
        if not self._up:
            self._up = self._lock(fcntl.LOCK_EX)
        return self._up

    def drop(self) -> None:
        if self._up:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._up = False

    def is_up_elsewhere(self) -> bool:
        # Shared, so that several may look at once; whoever puts it up meanwhile tries again soon.
        if self._up:
            return False
        if not self._lock(fcntl.LOCK_SH):
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def _lock(self, how: int) -> bool:
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def lending_in(folder: Path, name: str, shares: Mapping[str, int]) -> CpuSharing | None:
    """The agent's part in lending; None where there is nobody to lend to, or no way to.

    Args:
        folder: of this run alone, on this machine.
        name: the agent's.
        shares: threads of each agent that lends, this one among them.
    """
    if fcntl is None or name not in shares or len(shares) < 2 or not folder.is_dir():
        return None

    def flag(agent: str, what: str) -> FileFlag:
        return FileFlag(folder / f"{agent}.{what}.flag")

    with contextlib.suppress(OSError):
        return CpuSharing(
            shares[name],
            flag(name, "works"),
            [
                Neighbour(flag(other, "works"), [flag(other, f"thread{i}") for i in range(count)])
                for other, count in shares.items()
                if other != name
            ],
        )
    return None
