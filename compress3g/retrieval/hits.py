"""A page that was found, and where on it the query fits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from ..errors import ConfigError
from .catalog import DocumentRow
from .search import similarities
from .view import View


@dataclass(frozen=True, slots=True)
class Hit:
    """A page that was found. doc: path; page: from 1; page_id: for ever; meta: the document's."""

    doc: str
    page: int
    score: float
    page_id: int
    meta: Mapping[str, Any]
    _heatmap: Callable[[], Float32[np.ndarray, "t h w"]] = field(repr=False, compare=False)

    def heatmap(self) -> Float32[np.ndarray, "t h w"]:
        """Similarity of each query token to each patch of the page; NaN where no vector is kept.

        From the index alone. Raises ConfigError when it keeps no patches.
        """
        return self._heatmap()


def hit_of(
    view: View,
    query: Float[np.ndarray, "t d"],
    page: int,
    score: float,
    about: Mapping[int, tuple[int, DocumentRow]],
) -> Hit:
    """The hit of a page; `about` is the catalog's answer."""
    number, document = about[page]
    draw = functools.partial(heatmap_of, view, query, page)
    return Hit(document.path, number + 1, score, page, document.meta, draw)


def heatmap_of(
    view: View, query: Float[np.ndarray, "t d"], page: int
) -> Float32[np.ndarray, "t h w"]:
    """Similarities by query token, row and column. Raises ConfigError, see `Hit.heatmap`."""
    values, grid = similarities(view, query, page)
    placed = np.flatnonzero((grid >= 0).all(1))
    if not len(placed):
        raise ConfigError(f"page {page} has no patches with a place: nothing to draw")
    row, column = grid[placed].T
    out = np.full((row.max() + 1, column.max() + 1, len(values)), -np.inf, np.float32)
    # Several word-pieces can share a cell: the best one speaks for it, as in MaxSim.
    np.maximum.at(out, (row, column), values[:, placed].T)
    out[~np.isfinite(out)] = np.nan
    return np.moveaxis(out, 2, 0)
