"""An index as rows of other stores: LanceDB and Qdrant columns of many vectors per page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..errors import ConfigError, require
from .encoding import Encoding, stored_vectors
from .index import Index
from .rescore import decoded
from .segment import PageRows

_BATCH = 64  # pages


@dataclass(frozen=True, slots=True)
class ExportedPage:
    """A page as other stores keep it. vectors: [M, D], the originals, or decoded ones."""

    page_id: int
    doc: str
    page: int
    meta: dict[str, Any]
    vectors: Float32[np.ndarray, "m d"]


def exported_pages(index: Index) -> Iterator[ExportedPage]:
    """The living pages in order, as close to the originals as the index keeps them.

    Raises ConfigError for an index that keeps only sets of codes.
    """
    view = index._view
    dead = set(view.snapshot.deleted)
    for segment in view.segments:
        assert view.encoding is not None
        for piece in segment.chunks(0, len(segment)):
            x = _vectors(view.encoding, piece)
            alive = [int(p) for p in piece.page_ids if int(p) not in dead]
            about = index._catalog.locate(alive)
            ends = np.cumsum(piece.lengths)
            for page, end, length in zip(piece.page_ids, ends, piece.lengths, strict=True):
                if int(page) in about:
                    number, document = about[int(page)]
                    yield ExportedPage(
                        int(page), document.path, number + 1, dict(document.meta),
                        x[int(end - length) : int(end)],
                    )  # fmt: skip


def _vectors(encoding: Encoding, piece: PageRows) -> Float32[np.ndarray, "m d"]:
    x = stored_vectors(piece)
    if x is not None:
        return x
    if "codes" not in piece.vectors:
        raise ConfigError("the index keeps only sets of codes: build it with --patches to export")
    return decoded(encoding, piece)


def export(index: Index, kind: str, target: str, table: str) -> int:
    """Writes all living pages to a new table; their number.

    kind: "lancedb" (target: folder) or "qdrant" (target: folder, or an http address). Raises
    ConfigError for another kind and where the table exists, MissingExtra without the package.
    """
    writers: dict[str, Callable[[Index, str, str], int]] = {
        "lancedb": _to_lancedb,
        "qdrant": _to_qdrant,
    }
    if kind not in writers:
        raise ConfigError(f"--to {kind}: choose from {', '.join(writers)}")
    return writers[kind](index, target, table)


def _batches(index: Index) -> Iterator[list[ExportedPage]]:
    batch: list[ExportedPage] = []
    for page in exported_pages(index):
        batch.append(page)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _to_lancedb(index: Index, target: str, table: str) -> int:
    lancedb = require("lancedb", extra="export", purpose="exporting to LanceDB")
    arrow = require("pyarrow", extra="export", purpose="exporting to LanceDB")
    import json

    vectors = arrow.list_(arrow.list_(arrow.float32(), index.dimension))
    schema = arrow.schema(
        [("page_id", arrow.int64()), ("doc", arrow.string()), ("page", arrow.int32()),
         ("meta", arrow.string()), ("vectors", vectors)]
    )  # fmt: skip

    def rows() -> Iterator[Any]:
        for batch in _batches(index):
            columns = [
                [p.page_id for p in batch],
                [p.doc.encode("utf-8", "backslashreplace").decode() for p in batch],
                [p.page for p in batch],
                [json.dumps(p.meta) for p in batch],
                [list(p.vectors) for p in batch],
            ]
            arrays = [arrow.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            yield arrow.RecordBatch.from_arrays(arrays, schema=schema)

    try:
        made = lancedb.connect(target).create_table(table, rows(), schema=schema)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{target} table {table}: {' '.join(str(error).split())}") from None
    return int(made.count_rows())


def _to_qdrant(index: Index, target: str, table: str) -> int:
    qdrant = require("qdrant_client", extra="export", purpose="exporting to Qdrant")
    models = qdrant.models
    remote = target.startswith(("http://", "https://"))
    client = qdrant.QdrantClient(url=target) if remote else qdrant.QdrantClient(path=target)
    try:
        if client.collection_exists(table):
            raise ConfigError(
                f"{target} already has a collection {table!r}: choose another --table"
            )
        client.create_collection(
            table,
            vectors_config=models.VectorParams(
                size=index.dimension,
                distance=models.Distance.DOT,
                multivector_config=models.MultiVectorConfig(
                    comparator=models.MultiVectorComparator.MAX_SIM
                ),
            ),
        )
        count = 0
        for batch in _batches(index):
            points = [
                models.PointStruct(
                    id=p.page_id, vector=p.vectors.tolist(),
                    payload={**p.meta, "doc": p.doc.encode("utf-8", "backslashreplace").decode(),
                             "page": p.page},
                )
                for p in batch
            ]  # fmt: skip
            client.upsert(table, points, wait=True)
            count += len(points)
        return count
    finally:
        client.close()
