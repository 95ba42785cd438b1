"""Decoded pictures of whole scenes, one .npy each, in a folder that may vanish any time.

A cache only saves time: whatever goes wrong with it is logged for the curious and is never an
error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...engine.cache import cache_folder

CAPACITY = 4 << 30  # bytes

_OURS = re.compile(r"images-[0-9a-f]{64}\.(npy|\w+\.tmp)")
_log = logging.getLogger("compress3g.nerf")


def key_of(files: Sequence[Path], downscale: int) -> str:
    """A name for what these files decode to, another one as soon as one of them is touched."""
    digest = hashlib.sha256(str(downscale).encode())
    for file in files:
        status = file.stat()
        digest.update(repr((os.path.abspath(file), status.st_mtime_ns, status.st_size)).encode())
    return digest.hexdigest()


def load(key: str, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    """The pictures stored under `key`, None unless they are whole and of this (n, h, w)."""
    try:
        file = cache_folder() / f"images-{key}.npy"
        images = np.load(file, allow_pickle=False)
        os.utime(file)  # the oldest are deleted first: this one was needed today
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        _log.debug("cannot use the cached images: %s", error)
        return None
    fits = isinstance(images, np.ndarray) and images.dtype == np.uint8
    return images if fits and images.ndim == 4 and images.shape[:3] == shape else None


def store(key: str, images: npt.NDArray[np.uint8]) -> None:
    """Keep pictures under `key`, all of them or none, and delete the oldest beyond 4 GB."""
    if images.nbytes > CAPACITY:
        return
    try:
        home = cache_folder()
        home.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"images-{key}.", suffix=".tmp", dir=home)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, images)
            os.replace(name, home / f"images-{key}.npy")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _trim(home)
    except (OSError, RuntimeError) as error:
        _log.debug("cannot cache images: %s", error)


def _trim(home: Path) -> None:
    """Delete the files used longest ago until the rest fits."""
    ours = [file for file in home.iterdir() if _OURS.fullmatch(file.name)]
    aged = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in ours)
    total = sum(size for _, size, _ in aged)
    for _, size, file in aged:
        if total <= CAPACITY:
            return
        file.unlink(missing_ok=True)
        total -= size
