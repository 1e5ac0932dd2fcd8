"""Key files: pairs of CURVE keys, and the list of public keys that may connect to a bus.

``<name>.key`` holds name, public and secret key as JSON, readable by its user only. ``<name>.pub``
holds ``<name> <public key>`` and may be given to anybody. The list ``allowed`` has lines of the
same form. Names are those of agents: only the holder of llama's key can connect as llama.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentwire.bus.curve import new_pair, public_of
from agentwire.errors import InputError

SERVER: Final = "bus"
"""Name of the bus's own pair."""
ALLOWED: Final = "allowed"
KEY: Final = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # Z85 of 32 bytes
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One pair; ``secret`` is never printed."""

    name: str
    public: str
    secret: str = field(repr=False)


class KeyFolder:
    """The folder of this user's keys; created (0700) with the first key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def allowed(self) -> Path:
        return self.folder / ALLOWED

    def new(self, name: str) -> KeyPair:
        """Makes a pair; only this user can read its secret key. Raises an InputError if the name
        is invalid or taken, or the folder cannot be written."""
        check_name(name)
        public, secret = new_pair()
        path = self.folder / f"{name}.key"
        content = json.dumps({"name": name, "public": public, "secret": secret}) + "\n"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(content)
            (self.folder / f"{name}.pub").write_text(f"{name} {public}\n")
        except FileExistsError:
            raise InputError(
                f"A key named {name} already exists ({path}).",
                hint="Choose another name, or remove the file.",
            ) from None
        except OSError as error:
            raise InputError(
                f"Cannot write {path}: {error.strerror}.", hint="Choose a folder with --folder."
            ) from None
        return KeyPair(name, public, secret)

    def names(self) -> list[str]:
        """Names of the pairs in this folder."""
        return sorted(path.stem for path in self.folder.glob("*.key"))

    def server(self) -> KeyPair:
        """The bus's own pair; created if there is none."""
        path = self.folder / f"{SERVER}.key"
        return read_pair(path) if path.exists() else self.new(SERVER)

    def allow(self, name: str, public: str) -> None:
        """Registers a key as ``name``, in place of the key that the name had. Raises an InputError
        if one of them is invalid, or the key is registered under another name."""
        check_name(name)
        check_key(public)
        listed = read_allowed(self.allowed)
        for other, key in listed.items():
            if key == public and other != name:
                raise InputError(
                    f"Key already registered as {other}.", hint=f"Revoke {other} first."
                )
        self._write(listed | {name: public})

    def revoke(self, name: str) -> None:
        """Removes a key from the list: its peer is disconnected and cannot connect again. Raises an
        InputError if it is not on the list."""
        listed = read_allowed(self.allowed)
        if name not in listed:
            raise InputError(
                f"No key is registered as {name}.",
                hint="`agentwire keys list` shows the registered keys.",
            )
        del listed[name]
        self._write(listed)

    def _write(self, listed: dict[str, str]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.allowed.with_suffix(".new")
        fresh.write_text("".join(f"{name} {key}\n" for name, key in sorted(listed.items())))
        fresh.chmod(0o600)
        fresh.replace(self.allowed)


class AllowList:
    """The list in a file, read again when the file has changed. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._names: dict[str, str] = {}  # by key

    def name_of(self, key: str) -> str | None:
        """The name that a public key is registered for; None if it is not."""
        with self._lock:
            self._refresh()
            return self._names.get(key)

    def _refresh(self) -> None:
        try:
            info = self._path.stat()
            stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
            if stamp != self._stamp:
                self._names = {key: name for name, key in read_allowed(self._path).items()}
                self._stamp = stamp
        except (OSError, ValueError, InputError):  # an unreadable list admits nobody
            self._names, self._stamp = {}, None


def read_allowed(path: Path) -> dict[str, str]:
    """Name -> public key. Raises an InputError for an invalid line."""
    if not path.exists():
        return {}
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) != 2 or not NAME.fullmatch(words[0]) or not KEY.fullmatch(words[1]):
            raise InputError(
                f"{path}:{number} is not `<name> <public key>`.", hint="Fix or remove the line."
            )
        listed[words[0]] = words[1]
    return listed


def read_pair(path: Path) -> KeyPair:
    """Reads a pair from its file. Raises an InputError if the file is missing, invalid, or readable
    by others."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        values = json.loads(path.read_text(encoding="utf-8"))
        pair = KeyPair(str(values["name"]), str(values["public"]), str(values["secret"]))
        if public_of(pair.secret) != pair.public:
            raise ValueError("the keys do not match")
    except OSError as error:
        raise InputError(
            f"Cannot read the key {path}: {error.strerror}.",
            hint="`agentwire keys new <name>` makes one.",
        ) from None
    except Exception:  # an error message must not show any of its content
        raise InputError(
            f"{path} does not hold a pair of keys.", hint="`agentwire keys new <name>` makes one."
        ) from None
    if mode & 0o077:
        raise InputError(f"The key {path} is readable by others.", hint=f"Run: chmod 600 {path}")
    return pair


def read_public(text_or_path: str) -> tuple[str, str]:
    """(name, public key) of a ``.pub`` file, or (``""``, key) of a key. Raises an InputError
    for anything else."""
    if KEY.fullmatch(text_or_path):
        return "", text_or_path
    listed = read_allowed(Path(text_or_path))
    if len(listed) != 1:
        raise InputError(
            f"{text_or_path} is not a public key.",
            hint="Pass <name>.pub, or the 40 characters of the key.",
        )
    return next(iter(listed.items()))


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"Invalid key name {name!r}.",
            hint="Start with a letter or digit; use letters, digits and . _ - after it.",
        )


def check_key(public: str) -> None:
    if not KEY.fullmatch(public):
        raise InputError("Not a public key.", hint="A public key has 40 characters (Z85).")
