"""API keys. Only digests are kept, and they are compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentwire.errors import InputError

ANONYMOUS: Final = "anonymous"
MIN_LENGTH: Final = 16
_LINE: Final = re.compile(r"([A-Za-z0-9._-]{1,64})\s*[=:\s]\s*(\S+)")
HINT: Final = (
    "Write one `name key` per line. "
    "`python -c 'import secrets; print(secrets.token_hex())'` makes a key."
)


class ApiKeys:
    """The accepted API keys by name. Without keys, everyone is accepted as anonymous."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    def owner(self, authorization: str | None) -> str | None:
        """The name of the key in an ``Authorization`` header; None if no key matches."""
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = None
        for name, digest in self._digests.items():  # no early exit: the time must not tell which
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == "bearer" else None


def parse_keys(text: str, source: str) -> dict[str, str]:
    """Keys by name, from lines or comma-separated entries of ``name key`` or ``name=key``."""
    keys: dict[str, str] = {}
    for number, line in enumerate(text.replace(",", "\n").split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(f"{source}:{number}: expected a name and a key.", hint=HINT)
        name, key = match.groups()
        if name in keys:
            raise InputError(f"{source}:{number}: {name} already has a key.", hint=HINT)
        if len(key) < MIN_LENGTH:
            raise InputError(
                f"{source}:{number}: the key of {name} has fewer than {MIN_LENGTH} characters.",
                hint=HINT,
            )
        keys[name] = key
    return keys


def read_keys(path: Path) -> dict[str, str]:
    """Keys from a file. Raises InputError if it has none, or if other users can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise InputError(
                f"{path} can be read by other users of this machine.", hint=f"chmod 600 {path}"
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", hint=HINT) from None
    keys = parse_keys(text, str(path))
    if not keys:
        raise InputError(f"{path} has no key.", hint=HINT)
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
