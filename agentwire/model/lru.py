"""A cache of prepared things that drops the least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """At most ``limit`` values by key."""

    def __init__(self, limit: int) -> None:
        self.values: OrderedDict[K, V] = OrderedDict()
        self._limit = limit

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of ``key``, made now if it is not there. Raises what ``make`` raises."""
        if key not in self.values:
            # Room first: what is made may need the memory of what is dropped.
            while len(self.values) >= self._limit:
                self.values.popitem(last=False)
            self.values[key] = make()
        self.values.move_to_end(key)
        return self.values[key]
