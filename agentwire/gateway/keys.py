"""API keys: who may ask, and under which name.

Only digests are kept, and every digest is compared in constant time, so neither memory nor the time
of an answer says how much of a key was right.
"""

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
    "Write `name key`, one a line; "
    "`python -c 'import secrets; print(secrets.token_hex())'` makes a key."
)


class ApiKeys:
    """The keys that are let in.

    Args:
        keys: name -> key. Empty: everybody is let in, under one name.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, authorization: str | None) -> str | None:
        """Whose key the ``Authorization`` header bears; None: nobody's."""
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = None
        for name, digest in self._digests.items():  # all of them, whichever it is
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == "bearer" else None


def parse_keys(text: str, source: str) -> dict[str, str]:
    """Keys by name, from lines (or comma-separated entries) of ``name key`` or ``name=key``.

    Raises:
        InputError: a line is no name and key, a name comes twice, or a key is too short.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(text.replace(",", "\n").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(f"{source}:{number}: not a name and a key.", hint=HINT)
        name, key = match.groups()
        if name in keys:
            raise InputError(f"{source}:{number}: {name} has a key already.", hint=HINT)
        if len(key) < MIN_LENGTH:
            raise InputError(
                f"{source}:{number}: the key of {name} is shorter than {MIN_LENGTH} characters.",
                hint=HINT,
            )
        keys[name] = key
    return keys


def read_keys(path: Path) -> dict[str, str]:
    """Keys from a file.

    Raises:
        InputError: it cannot be read, holds no key, or anybody on this machine can read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise InputError(
                f"{path} can be read by other users of this machine.", hint=f"chmod 600 {path}"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", hint=HINT) from None
    keys = parse_keys(text, str(path))
    if not keys:
        raise InputError(f"{path} holds no key.", hint=HINT)
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
