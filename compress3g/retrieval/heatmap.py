"""Where on a page a query fits: heat over words or patches, and the words around the best place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy.lib.stride_tricks import sliding_window_view

from .pages import PageImage
from .pdf import Word

if TYPE_CHECKING:
    from PIL.Image import Image

Heat = Float[np.ndarray, "t h w"]  # similarity of each query token to each cell, NaN for none
_SNIPPET = 16  # words
_OPAQUE = 0.6
# Dark blue to yellow, the ends and middle of matplotlib's `plasma`.
_COLOURS = np.array([(13, 8, 135), (156, 23, 158), (237, 121, 83), (240, 249, 33)], np.float32)


def overlay(
    page: PageImage, heat: Heat, *, grid: tuple[int, int] | None = None, token: int | None = None
) -> Image:
    """The rendered page under its heat, RGB; grid and token as for `heat_layer`."""
    from PIL import Image

    picture = page.image
    layer = heat_layer(page.words, heat, picture.size, grid=grid, token=token)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def heat_layer(
    words: Sequence[Word],
    heat: Heat,
    size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    token: int | None = None,
) -> Image:
    """Heat to lay over a page of `size` pixels, RGBA, transparent where nothing fits.

    heat: as `Hit.heatmap` gives it. grid: rows and columns the page is divided into when the
    encoder fixes that, see `Encoder.grid`: then words are coloured; patches without grid, and
    cells of the grid without words. token: one token of the query instead of the sum over all.
    """
    if grid is not None and words:
        values = word_heat(words, heat, grid)
        values = values.sum(1) if token is None else values[:, token]
        return _words_layer(words, _levels(values), size)
    flat = heat.sum(0) if token is None else heat[token]
    if grid is not None:  # a map ends at its last row and column with a vector
        missing = [(0, max(whole - part, 0)) for whole, part in zip(grid, flat.shape, strict=True)]
        flat = np.pad(flat, missing, constant_values=np.nan)
    return _patches_layer(_levels(flat), size)


def word_heat(
    words: Sequence[Word], heat: Heat, grid: tuple[int, int]
) -> Float32[np.ndarray, "n t"]:
    """Similarity of each word to each query token: the best of the cells in its box.

    NaN for words without a vector, such as those that pruning dropped.
    """
    if not len(words):
        return np.zeros((0, len(heat)), np.float32)
    rows, columns = grid
    best = np.full((len(heat), rows * columns + 1), -np.inf, np.float32)
    whole = best[:, :-1].reshape(len(heat), rows, columns)
    down, across = (min(a, b) for a, b in zip(heat.shape[1:], grid, strict=True))
    seen = heat[:, :down, :across]
    whole[:, :down, :across] = np.where(np.isnan(seen), -np.inf, seen)
    # The cells of a word are neighbours in a row: its best is one stretch of the flat map.
    first, stop = _cells(words, grid)
    bounds = np.stack([first, stop], 1).ravel()
    out = np.maximum.reduceat(best, bounds, axis=1)[:, ::2].T
    return np.asarray(np.where(np.isinf(out), np.nan, out), np.float32)


def _cells(
    words: Sequence[Word], grid: tuple[int, int]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """First and last + 1 of the cells, row after row, where middles of a word's pieces can lie."""
    left, top, right, bottom = np.array([word.box for word in words]).T
    rows, columns = grid

    def clipped(place: Float[np.ndarray, "n"], most: int) -> Int64[np.ndarray, "n"]:
        return np.clip((place * most).astype(np.int64), 0, most - 1)

    row = clipped((top + bottom) / 2, rows) * columns
    return row + clipped(left, columns), row + clipped(right, columns) + 1


def snippet(
    words: Sequence[Word], heat: Heat | None, grid: tuple[int, int] | None, *, run: int = _SNIPPET
) -> str:
    """The run of words in which the query fits best by MaxSim, the first ones without heat."""
    texts = [w.text for w in words]
    first = 0
    if heat is not None and grid is not None and texts:
        values = np.nan_to_num(word_heat(words, heat, grid), nan=-1.0)
        runs = sliding_window_view(values, min(run, len(values)), axis=0)
        fits = runs.max(2).sum(1).tolist()
        best = int(np.argmax(fits))
        # Of the runs that fit equally well, the middle one: context on both sides.
        last = best
        while last + 1 < len(fits) and fits[last + 1] >= fits[best] - 1e-6:
            last += 1
        first = (best + last) // 2
    before, after = "… " * (first > 0), " …" * (first + run < len(texts))
    return f"{before}{' '.join(texts[first : first + run])}{after}"


def _levels(values: Float[np.ndarray, "*s"]) -> Float32[np.ndarray, "*s"]:
    """Heat from 0, the page's median and below, to 1, its best; NaN stays."""
    seen = values[~np.isnan(values)]
    if not len(seen):
        return np.asarray(values, np.float32)
    low, high = float(np.median(seen)), float(seen.max())
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)


def _colours(levels: Float32[np.ndarray, "*s"]) -> Float32[np.ndarray, "*s 4"]:
    """RGBA in 0..255; cold and NaN are transparent."""
    level = np.nan_to_num(levels, nan=0.0)
    stops = np.linspace(0, 1, len(_COLOURS))
    rgb = [np.interp(level, stops, _COLOURS[:, c]) for c in range(3)]
    return np.stack([*rgb, 255 * _OPAQUE * level], -1).astype(np.float32)


def _words_layer(
    words: Sequence[Word], levels: Float32[np.ndarray, "n"], size: tuple[int, int]
) -> Image:
    from PIL import Image, ImageDraw

    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    width, height = size
    for word, colour in zip(words, _colours(levels), strict=True):
        left, top, right, bottom = word.box
        box = (math.floor(left * width) - 2, math.floor(top * height) - 2,
               math.ceil(right * width) + 2, math.ceil(bottom * height) + 2)  # fmt: skip
        draw.rectangle(box, fill=tuple(int(c) for c in colour))
    return layer


def _patches_layer(levels: Float32[np.ndarray, "h w"], size: tuple[int, int]) -> Image:
    from PIL import Image

    pixels = Image.fromarray(np.rint(_colours(levels)).astype(np.uint8), "RGBA")
    return pixels.resize(size, Image.Resampling.BILINEAR)
