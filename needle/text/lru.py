"""Memory for what was used lately, bounded by its size: a server must not grow with every schema it ever saw."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Lru(Generic[V]):
    """Values by text. What wasn't used the longest while goes once the texts' characters and the values' sizes exceed
    `most`. Safe among threads."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._kept: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> V | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: str, value: V, size: int = 0) -> None:
        """`size` is the value's own, in what `most` is counted in."""
        with self._lock:
            _, old = self._kept.pop(key, (None, 0))
            self._kept[key] = value, len(key) + size
            self.size += len(key) + size - old
            while self.size > self.most:
                self.size -= self._kept.popitem(last=False)[1][1]


def kept(most: int) -> Callable[[Callable[[str], V]], Callable[[str], V]]:
    """Keeps what a function of one text returned, for texts of `most` characters altogether."""

    def wrap(function: Callable[[str], V]) -> Callable[[str], V]:
        lru: Lru[V] = Lru(most)

        @functools.wraps(function)
        def call(text: str) -> V:
            value = lru.get(text)
            if value is None:
                value = function(text)
                lru.put(text, value)
            return value

        return call

    return wrap
