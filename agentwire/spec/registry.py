"""Named implementations: built-in ones, and those that other packages add through entry points."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Generic, TypeVar

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from agentwire.errors import AgentwireError, ScenarioError

T = TypeVar("T")


class Registry(Generic[T]):
    """Name -> implementation. A built-in name always wins over an entry point of the same name.

    ``group`` is the entry point group in which other packages add implementations, for example
    ``agentwire.backends``; ``noun`` is what error messages call an entry.
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group = group
        self.noun = noun
        self._loaded: dict[str, T] = {}
        self._lazy: dict[str, str] = {}

    def add(self, name: str, implementation: T) -> None:
        """Registers an implementation; raises AgentwireError if another has this name."""
        if self._loaded.get(name, implementation) is not implementation:
            raise AgentwireError(
                f"Two {self.noun}s are named {name!r}.", hint="Register one under another name."
            )
        self._loaded[name] = implementation

    def lazy(self, name: str, target: str) -> None:
        """Registers ``module:attribute``, which is imported when it is first asked for."""
        self._lazy[name] = target

    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first."""
        return tuple(dict.fromkeys((*self._lazy, *self._loaded, *self._entry_points())))

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._lazy or name in self._entry_points()

    def get(self, name: str) -> T:
        """The implementation with this name, imported now if need be.

        Raises ScenarioError if there is none, AgentwireError if its package cannot be loaded.
        """
        if name not in self._loaded:
            if name in self._lazy:
                module, _, attribute = self._lazy[name].partition(":")
                self._loaded[name] = getattr(importlib.import_module(module), attribute)
            else:
                self._loaded[name] = self._from_entry_point(name)
        return self._loaded[name]

    def _from_entry_point(self, name: str) -> T:
        entry = self._entry_points().get(name)
        if entry is None:
            raise ScenarioError(
                f"There is no {self.noun} {name!r}.",
                hint=suggestion(name, self.names(), f"{self.noun.capitalize()}s"),
            )
        try:
            loaded: Any = entry.load()
        except Exception as error:  # whatever a third-party module raises while it is imported
            package = entry.dist.name if entry.dist is not None else entry.value
            raise AgentwireError(
                f"The {self.noun} {name!r} of the package {package} cannot be loaded: {error!r}.",
                hint=f"Repair or uninstall {package}.",
            ) from error
        return loaded  # type: ignore[no-any-return]

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {entry.name: entry for entry in metadata.entry_points(group=self.group)}


def known_name(registry: Registry[Any]) -> AfterValidator:
    """Validator of a schema's field that names an entry of ``registry``; nothing is imported."""

    def check(name: str) -> str:
        if name not in registry:
            # Worded and typed as pydantic's own error for a Literal.
            *most, last = (repr(known) for known in registry.names())
            expected = f"{', '.join(most)} or {last}" if most else last
            raise PydanticCustomError(
                "literal_error", "Input should be {expected}", {"expected": expected}
            )
        return name

    return AfterValidator(check)


def suggestion(word: str, known: Iterable[str], title: str) -> str:
    """``Did you mean 'llama'?``, or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"{title}: {', '.join(names)}." if names else f"{title}: none."
