"""Results kept for as long as they are asked for, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The `limit` results that were asked for last.

    `make` is called by one thread at a time, which is also what tokenizers and PDF readers need.

    >>> squares = Recent(lambda x: x * x, limit=2)
    >>> squares(3), squares(3), len(squares)
    (9, 9, 1)
    """

    def __init__(self, make: Callable[[Key], Value], *, limit: int) -> None:
        self._make, self._limit = make, limit
        self._known: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()  # of the dictionary, held for moments
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, key: Key) -> Value:
        """The result for `key`. What `make` raises passes through and is not kept."""
        if (found := self._look_up(key)) is not None:
            return found[0]
        with self._making:
            if (found := self._look_up(key)) is not None:  # another thread was faster
                return found[0]
            value = self._make(key)
        with self._lock:
            self._known[key] = value
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        return value

    def _look_up(self, key: Key) -> tuple[Value] | None:
        with self._lock:
            if key not in self._known:
                return None
            self._known.move_to_end(key)
            return (self._known[key],)
