"""Which of a capture's folders of pictures to read: images, images_2, images_4, images_8."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from ...errors import SceneError

_FOLDER = re.compile(r"images(?:_(\d{1,3}))?")
_log = logging.getLogger("compress3g.nerf")


def choose(root: Path, downscale: int, usable: Callable[[Path], bool]) -> tuple[Path, int] | None:
    """The folder to read and the factor by which its pictures are still to be made smaller.

    images_8 holds the originals at an eighth of their size, so that `downscale` counts from the
    originals even where they are absent; it never makes pictures larger. usable: whether a folder
    holds the pictures wanted. None where no folder is usable.
    Raises SceneError where the pictures there are do not lead to this downscale.
    """
    factors: dict[int, Path] = {}
    for folder in sorted(root.iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match and folder.is_dir() and usable(folder):
            factors[int(match[1] or 1)] = folder
    factors.pop(0, None)
    if not factors:
        return None
    largest = min(factors)
    target = max(downscale, largest)
    fitting = [factor for factor in factors if target % factor == 0]
    if not fitting:
        raise SceneError(
            f"downscale {downscale} is no multiple of {largest}, the factor of the largest images "
            f"there are, {factors[largest]}: use {largest} or {2 * largest}"
        )
    if 1 < downscale < largest:
        _log.warning("%s has no larger images: downscale is %d", factors[largest], largest)
    return factors[max(fitting)], target // max(fitting)
