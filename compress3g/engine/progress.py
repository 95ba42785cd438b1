"""One live line about a long run: rewritten in place on a terminal, now and then in a log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes.

    >>> duration(75), duration(7320)
    ('1:15', '2h02')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"


class Progress:
    """Shows `name value` pairs, the share that is done and the time that is left."""

    def __init__(self, title: str, *, every: float = 10.0) -> None:
        self._title, self._every = title, every
        self._start = self._last = time.monotonic()
        self._live = sys.stderr.isatty()
        self._shown = False

    def update(self, fields: Mapping[str, str], done: float) -> None:
        """Show the fields; at most ten times a second live, once per `every` seconds in a log."""
        now = time.monotonic()
        if now - self._last < (0.1 if self._live else self._every):
            return
        self._last = now
        left = (now - self._start) * (1 - done) / done if done > 0 else 0.0
        pairs = "  ".join(f"{name} {value}" for name, value in fields.items())
        line = f"{self._title} {done:4.0%}  {pairs}  ETA {duration(left)}"
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[2K{line[:width]}")
            sys.stderr.flush()
            self._shown = True
        else:
            _log.info(line)

    def over(self, items: Iterable[Item], count: int) -> Iterator[Item]:
        """The items, with a line that says how many of `count` have been asked for."""
        for i, item in enumerate(items):
            self.update({"": f"{i}/{count}"}, i / count)
            yield item

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
