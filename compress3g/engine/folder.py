"""Folders that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which gets its name when the block has ended well.

    Every file is on disk before the rename. Raises ConfigError when `path` exists; whatever goes
    wrong, nothing is left behind.
    """
    path = Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        for file in [*temporary.rglob("*"), temporary]:
            # Temporary folders and some writers' files are private; a result is not.
            file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
            _sync(file)
        refuse_existing(path)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def refuse_existing(path: Path) -> None:
    """Raises ConfigError when there is something at `path` already."""
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already: give another folder, or remove it first")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
