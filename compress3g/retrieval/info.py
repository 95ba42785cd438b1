"""What an index holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .catalog import FORMAT, Catalog
from .config import IndexConfig
from .view import View

PRECOMPUTED = "precomputed"  # fingerprint of an index that is only ever given vectors


@dataclass(frozen=True, slots=True)
class Info:
    """What an index holds; bytes by array, and per living page.

    trained_on: vectors the index had when its codebook was trained, 0 where that is not known.
    growing: it will be trained again; until then `store` is kept for that.
    """

    path: str
    format: int
    generation: int
    encoder: str
    dimension: int
    config: Mapping[str, Any]
    centroids: int
    trained_on: int
    growing: bool
    documents: int
    pages: int
    deleted_pages: int
    waiting_pages: int
    vectors: int
    segments: int
    bytes: int
    bytes_per_page: float
    arrays: Mapping[str, int]


def describe(path: Path, view: View, catalog: Catalog, config: IndexConfig) -> Info:
    """Counts and bytes."""
    meta = view.snapshot.meta
    arrays: dict[str, int] = {}
    for segment in view.segments:
        for name, header in segment.folder.headers.items():
            arrays[name] = arrays.get(name, 0) + header.bytes
    waiting = sum(s.pages for s in view.snapshot.segments if s.codebook is None)
    total, pages = sum(arrays.values()), len(view)
    return Info(
        path=str(path),
        format=FORMAT,
        generation=view.snapshot.generation,
        encoder=meta["encoder"] or PRECOMPUTED,
        dimension=int(meta["dimension"]),
        config=dataclasses.asdict(config),
        centroids=view.encoding.codebook.k if view.encoding else 0,
        trained_on=view.encoding.codebook.seen if view.encoding else 0,
        growing=config.grow if view.encoding is None else view.encoding.growing,
        documents=catalog.count_documents(),
        pages=pages,
        deleted_pages=len(view.page_ids) - pages,
        waiting_pages=waiting,
        vectors=sum(int(s.offsets[-1]) for s in view.segments),
        segments=len(view.segments),
        bytes=total,
        bytes_per_page=total / max(len(view.page_ids), 1),
        arrays=arrays,
    )
