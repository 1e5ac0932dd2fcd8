"""Access to the bus: a private folder, a secret token, and no unencrypted TCP by accident."""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from agentwire.errors import InputError

TOKEN_BYTES = 32
IPC_PATH_BYTES = 107  # sun_path of Linux without its final NUL; macOS has 103
LONGEST_TMPDIR = 80  # leaves room for the folder's and the socket's name, also on macOS
SHORT_TMPDIR = Path("/tmp")
LOOPBACK_NAMES = ("localhost",)


def new_token() -> str:
    """A new secret for one run: 64 hex digits. It is never logged or written to a result."""
    return secrets.token_hex(TOKEN_BYTES)


def make_run_folder(parent: Path | None = None) -> Path:
    """A new private folder (0700) for the ipc socket of one run. The caller removes it.

    It is under the system's temporary folder, because an ipc path has at most about 107 bytes; in
    /tmp if TMPDIR is too long for that. Each run has its own, because a second bind would silently
    take over the path of the first. Raises an InputError if the folder cannot be made.
    """
    if parent is None and len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        parent = SHORT_TMPDIR
    try:
        return Path(tempfile.mkdtemp(prefix="aw-", dir=parent))  # mkdtemp sets 0700
    except OSError as error:
        raise InputError(
            f"Cannot make a private folder for the bus: {error.strerror or error}.",
            hint="Set TMPDIR to a short, writable folder.",
        ) from None


def check_folder(folder: Path) -> None:
    """Checks that a folder for sockets is private. Raises an InputError if it belongs to another
    user, or is open to group or others."""
    try:
        info = folder.lstat()
    except OSError as error:
        raise InputError(
            f"Cannot read the folder for the bus {folder}: {error.strerror or error}.",
            hint="Make one with agentwire.bus.security.make_run_folder().",
        ) from None
    ours = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
    if not ours or stat.S_IMODE(info.st_mode) & 0o077:
        raise InputError(
            f"The folder for the bus {folder} is not private to this user.",
            hint=f"Run: chmod 700 {folder}",
        )


def ipc_endpoint(folder: Path, name: str = "bus") -> str:
    """``ipc://`` address of a socket in ``folder``. Raises as ``check_ipc_path``."""
    return f"ipc://{check_ipc_path(str(folder.absolute() / name))}"


def check_ipc_path(path: str) -> Path:
    """Raises InputError if a socket path is longer than the system allows."""
    if len(os.fsencode(path)) > IPC_PATH_BYTES:
        raise InputError(
            f"The socket path {path} is longer than {IPC_PATH_BYTES} bytes.",
            hint="Set TMPDIR to a shorter folder, such as /tmp.",
        )
    return Path(path)


def check_endpoint(endpoint: str, *, curve: bool, force: bool = False) -> None:
    """Refuses endpoints that are open to the network.

    ``ipc://`` and ``inproc://`` are allowed (the folder guards ipc). ``tcp://`` is allowed on a
    loopback address, with CURVE keys, or if forced. Raises an InputError for anything else.
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("ipc", "inproc") and rest and not rest.startswith("@"):
        return
    if scheme != "tcp" or not rest:
        raise InputError(
            f"Invalid bus address {endpoint!r}.",
            hint="Use ipc:///path/to/socket or tcp://host:port.",
        )
    if not (curve or force or _is_loopback(endpoint)):
        raise InputError(
            f"The bus address {endpoint!r} would be open to the network without encryption.",
            hint="Use CURVE keys, bind 127.0.0.1, or force plain tcp on a trusted network.",
        )


def _is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach this tcp address."""
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        return False
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # an interface name, a wildcard, or a name that may resolve to anything
