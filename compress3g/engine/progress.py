"""One live line about a long run: rewritten in place on a terminal, now and then in a log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def fitted(parts: Sequence[str], width: int) -> str:
    """As many whole parts, from the first on, as `width` columns hold.

    >>> fitted(["hollow  12%", "ETA 0:30", "PSNR 21.30"], 24)
    'hollow  12%  ETA 0:30'
    """
    line = parts[0][:width]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line


class Progress:
    """Shows `name value` pairs, the share that is done and the time that is left."""

    def __init__(self, title: str, *, every: float = 10.0) -> None:
        self._title, self._every = title, every
        self._start = self._last = time.monotonic()
        self._begun: float | None = None  # what was done when it was first shown: a resumed run
        self._live = sys.stderr.isatty()
        self._shown = False

    def update(self, fields: Mapping[str, str], done: float) -> None:
        """Show the fields; at most ten times a second live, once per `every` seconds in a log."""
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._start = done, now
        if now - self._last < (0.1 if self._live else self._every):
            return
        self._last = now
        gained = done - self._begun
        left = duration((now - self._start) * (1 - done) / gained) if gained > 0 else "-"
        parts = [f"{name} {value}".strip() for name, value in fields.items()]
        parts = [f"{self._title} {done:4.0%}", f"ETA {left}", *parts]
        if self._live:
            line = fitted(parts, shutil.get_terminal_size().columns - 1)
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()
            self._shown = True
        else:
            _log.info("  ".join(parts))

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
