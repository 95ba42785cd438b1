"""Hits as the command line shows them: snippets of text, pictures with heat."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from jaxtyping import Float32

from ..errors import ConfigError, DocumentError, MissingExtra
from .heatmap import overlay, snippet
from .hits import Hit
from .index import Index
from .pages import PAGE_SUFFIXES, PageImage, read_page
from .pdf import Pdf

_OPEN = 8  # files at a time


def read_query(path: Path) -> Float32[np.ndarray, "t d"]:
    """Query vectors of a .npy file. Raises DocumentError when it is no such file."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except FileNotFoundError:
        raise DocumentError(f"{path} does not exist") from None
    except (ValueError, EOFError, OSError) as error:
        raise DocumentError(f"{path} is not a .npy file of vectors: {error}") from None


def read_metadata(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--meta year=2024 --meta lang=en` as numbers, truth values and strings."""
    meta: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--meta")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        meta[key] = value if isinstance(value, (str, int, float, bool)) else text
    return meta


def shown_hits(index: Index, hits: Sequence[Hit], heatmaps: Path | None) -> list[dict[str, Any]]:
    """Plain values of each hit, with the words that fit where the document can still be read.

    With a folder also a picture of each page and where it fits. Raises ConfigError for pictures of
    an index that keeps no patches.
    """
    grid = index.grid
    opened = lru_cache(_OPEN)(Pdf)
    rows = []
    for rank, hit in enumerate(hits, 1):
        row: dict[str, Any] = {
            "doc": hit.doc, "page": hit.page, "score": hit.score, "page_id": hit.page_id,
            "meta": dict(hit.meta),
        }  # fmt: skip
        page = _page(hit, opened)
        if page is not None and page.words:
            row["snippet"] = snippet(page.words, _heat(hit) if grid else None, grid)
        if heatmaps is not None:
            path = heatmaps / f"{rank:02}-page-{hit.page}.png"
            row["heatmap"] = str(_draw(hit, page, grid, path))
        rows.append(row)
    return rows


def _page(hit: Hit, open_pdf: Callable[[Path], Pdf]) -> PageImage | None:
    """The page itself, None when the file is gone, changed or held vectors."""
    path = Path(hit.doc)
    if path.suffix.lower() not in PAGE_SUFFIXES:
        return None
    try:
        return read_page(path, hit.page, open_pdf=open_pdf)
    except (DocumentError, MissingExtra):
        return None


def _heat(hit: Hit) -> Float32[np.ndarray, "t h w"] | None:
    try:
        return hit.heatmap()
    except ConfigError:  # the index keeps no patches
        return None


def _draw(hit: Hit, page: PageImage | None, grid: tuple[int, int] | None, path: Path) -> Path:
    """Heat over the page, over nothing when the page is gone: then a pixel is a patch, grey."""
    from PIL import Image

    from ..engine.checkpoint import atomic_write

    heat = hit.heatmap()
    if page is not None:
        picture = overlay(page, heat, grid=grid)
    else:
        flat = np.nan_to_num(heat, nan=0.0).sum(0)
        span = max(float(flat.max() - flat.min()), 1e-9)
        levels = ((flat - flat.min()) / span * 255).astype(np.uint8)
        picture = Image.fromarray(levels).resize((levels.shape[1] * 16, levels.shape[0] * 16))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: picture.save(file, "PNG"))
    return path
