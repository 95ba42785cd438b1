"""The files a command names: found, fingerprinted, in an order that never changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DocumentError

_READ = 1 << 22


@dataclass(frozen=True, slots=True)
class Source:
    """One file to index; `path` is byte-exact, names that are no UTF-8 have surrogate escapes."""

    path: Path
    sha256: str
    mtime: float


def find_sources(
    paths: Sequence[str | os.PathLike[str]], suffixes: frozenset[str], *, hint: str = ""
) -> list[Path]:
    """The files themselves, and all files below folders that have one of the suffixes, sorted.

    Each once, absolute, symbolic links as they are. Raises DocumentError for a path that is not
    there, and for a folder in which nothing can be read; hint: the end of that message.
    """
    found: dict[Path, None] = {}
    for name in paths:
        path = Path(os.path.abspath(name))
        if path.is_dir():
            inside = sorted(_below(path, suffixes), key=os.fsencode)
            if not inside:
                known = " ".join(sorted(suffixes))
                raise DocumentError(f"{name!s} holds no document: looked for {known}{hint}")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise DocumentError(f"{name!s} does not exist")
    return list(found)


def _below(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(parent, name)


def fingerprint(path: Path) -> Source:
    """The file with the SHA-256 of its bytes. OSError passes through."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        mtime = os.fstat(file.fileno()).st_mtime
        while data := file.read(_READ):
            digest.update(data)
    return Source(path, digest.hexdigest(), mtime)
