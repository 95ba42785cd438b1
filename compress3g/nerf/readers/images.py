"""Pictures as one tensor: decoded by two threads, shrunk with their alpha, kept in a cache."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...errors import SceneError
from . import _image_cache

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

_SMALLEST = 16  # pixels: below that nothing is left of a picture, and of a score of it
_THREADS = 2
# What PIL raises for files that are cut off, damaged or no pictures, depending on their format.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)

_Pixels = npt.NDArray[np.uint8]


def find(path: Path) -> Path | None:
    """The picture a scene file means by `path`, which may lack its suffix; None without one."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return path
    for suffix in SUFFIXES[:3]:
        for name in (path.name + suffix, path.name + suffix.upper()):
            if path.name and (file := path.with_name(name)).is_file():
                return file
    return path if path.is_file() else None


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )


def size_of(file: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises SceneError where it is no picture.
    """
    return _header(file)[:2]


def decode(files: Sequence[Path], downscale: int = 1) -> UInt8[Tensor, "n h w c"]:
    """The pictures in [0, 255]: RGBA with straight alpha if any pixel is not opaque, else RGB.

    Wider samples are rounded to 8 bits, grey and palettes become colours. downscale: averages
    squares of that many pixels, colours weighted by alpha; an incomplete last row or column of
    squares is left out, so that a pixel stays exactly `downscale` pixels wide.
    Raises SceneError naming the file for one that cannot be read, sizes that differ, or pictures
    that would be left with fewer than 16 pixels a side.
    """
    headers = [_header(file) for file in files]
    width, height = _common_size(files, headers)
    if downscale > 1 and min(width, height) // downscale < _SMALLEST:
        raise SceneError(
            f"downscale {downscale} leaves fewer than {_SMALLEST} pixels a side of {files[0]} "
            f"({width}x{height}): use at most {max(1, min(width, height) // _SMALLEST)}"
        )
    shape = (len(files), height // downscale, width // downscale)
    key = _image_cache.key_of(files, downscale)
    images = _image_cache.load(key, shape)
    if images is None:
        channels = 4 if any(alpha for _, _, alpha in headers) else 3
        images = _decode_all(files, (*shape, channels), downscale)
        _image_cache.store(key, images)
    return torch.from_numpy(images)


def shrink(pixels: _Pixels, factor: int) -> _Pixels:
    """Averages of squares of `factor` pixels, RGB weighted by alpha where there is a 4th channel.

        a = mean(a_i),  rgb = sum(a_i rgb_i) / sum(a_i)

    That is the average of premultiplied colours: what is hidden by alpha does not bleed. Sums are
    exact integers up to a factor of 256.
    """
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    squares = pixels[: height * factor, : width * factor].astype(np.uint32)
    squares = squares.reshape(height, factor, width, factor, -1)
    weight: Any = factor * factor
    if pixels.shape[2] == 4:
        squares[..., :3] *= squares[..., 3:]
    total = squares.sum((1, 3), dtype=np.float64)
    if pixels.shape[2] == 4:
        alpha = total[..., 3:]
        weight = np.concatenate([np.repeat(np.maximum(alpha, 1), 3, 2), 0 * alpha + weight], 2)
    rounded: _Pixels = np.rint(total / weight).astype(np.uint8)
    return rounded


def _header(file: Path) -> tuple[int, int, bool]:
    """Width, height, and whether pixels may be transparent."""
    try:
        with Image.open(file) as picture:
            alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La")
            return *picture.size, alpha or "transparency" in picture.info
    except _UNREADABLE as error:
        raise _unreadable(file, error) from None


def _common_size(
    files: Sequence[Path], headers: Sequence[tuple[int, int, bool]]
) -> tuple[int, int]:
    width, height, _ = headers[0]
    for file, (w, h, _) in zip(files, headers, strict=True):
        if (w, h) != (width, height):
            raise SceneError(
                f"images differ in size: {files[0]} is {width}x{height}, {file} is {w}x{h}: "
                "crop or resize them to one size, or take the odd ones out"
            )
    return width, height


def _decode_all(files: Sequence[Path], shape: tuple[int, ...], downscale: int) -> _Pixels:
    images = np.empty(shape, np.uint8)

    def one(i: int) -> None:
        pixels = _pixels(files[i], shape[-1])
        images[i] = shrink(pixels, downscale) if downscale > 1 else pixels

    pool = ThreadPoolExecutor(_THREADS)
    try:
        for _ in pool.map(one, range(len(files))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    if shape[-1] == 4 and images[..., 3].min() == 255:
        images = np.ascontiguousarray(images[..., :3])
    return images


def _pixels(file: Path, channels: int) -> _Pixels:
    try:
        with Image.open(file) as picture:
            picture.load()
            if picture.mode == "F":
                raise ValueError("it has floating-point samples: save it with 8 or 16 bits")
            shown = _eight_bits(picture) if picture.mode.startswith("I") else picture
            return np.asarray(shown.convert("RGBA" if channels == 4 else "RGB"))
    except _UNREADABLE as error:
        raise _unreadable(file, error) from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit grey picture in 8 bits: PIL's own conversion would cut values off at 255."""
    wide = np.asarray(picture)
    if wide.min() < 0 or wide.max() > 0xFFFF:
        raise ValueError("it has samples of more than 16 bits: save it with 8 or 16 bits")
    return Image.fromarray(np.rint(wide / 257).astype(np.uint8))


def _unreadable(file: Path, error: Exception) -> SceneError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, UnidentifiedImageError):
        reason = "it is no picture"
    return SceneError(f"cannot read the image {file}: {reason}: replace it or take its frame out")
