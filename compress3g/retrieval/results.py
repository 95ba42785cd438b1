"""Hits as the command line shows them: snippets of text, pictures with heat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from jaxtyping import Float32

from ..errors import DocumentError
from .hits import Hit
from .index import Index


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


def shown_hits(
    index: Index, hits: Sequence[Hit], query: str, heatmaps: Path | None
) -> list[dict[str, Any]]:
    """Plain values of each hit; with a folder also a picture of the page and where it fits."""
    rows = []
    for rank, hit in enumerate(hits, 1):
        row: dict[str, Any] = {
            "doc": hit.doc, "page": hit.page, "score": hit.score, "page_id": hit.page_id,
            "meta": dict(hit.meta),
        }  # fmt: skip
        if heatmaps is not None:
            row["heatmap"] = str(_draw(hit, heatmaps / f"{rank:02}-page-{hit.page_id}.png"))
        rows.append(row)
    return rows


def _draw(hit: Hit, path: Path) -> Path:
    """The sum over query tokens as grey levels, one pixel a patch; overlays are heatmap.py's."""
    from PIL import Image

    from ..engine.checkpoint import atomic_write

    heat = np.nan_to_num(hit.heatmap(), nan=0.0).sum(0)
    span = max(float(heat.max() - heat.min()), 1e-9)
    levels = ((heat - heat.min()) / span * 255).astype(np.uint8)
    picture = Image.fromarray(levels).resize((levels.shape[1] * 16, levels.shape[0] * 16))
    atomic_write(path, lambda file: picture.save(file, "PNG"))
    return path
