"""Stage 0 for very large collections: a graph over one vector a page, and the pages it finds.

    page    p = sum_j x_j / |sum_j x_j|            query    sum_t q_t
    HNSW (1603.09320) over the p of a segment, by inner product

The graph belongs to its segment: one more file with checksums, written with it, rebuilt when the
segment is compacted. It finds pages that fit the query as a whole; a page that answers with one
passage among many may be missed. docs/retrieval.md has what that costs and what it saves.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8

from ..errors import FormatError, require
from .vectors import normalise

if TYPE_CHECKING:
    from .segment import Segment

FEWEST = 4096  # pages that are worth a graph: fewer are compared one by one in a millisecond
_LINKS, _BUILD_BREADTH = 16, 200
_PIECE = 1 << 22  # bytes


def pooled_pages(
    x: Float32[np.ndarray, "m d"], lengths: Int64[np.ndarray, "p"]
) -> Float16[np.ndarray, "p d"]:
    """One unit vector a page, the direction of the sum of its vectors. No page may be empty."""
    sums = np.add.reduceat(x, np.cumsum(lengths) - lengths, axis=0)
    short = np.linalg.norm(sums, axis=1) < 1e-6  # vectors that cancel out point nowhere: the first
    sums[short] = x[(np.cumsum(lengths) - lengths)[short]]
    return normalise(sums).astype(np.float16)


class GraphBuilder:
    """Grows the graph of a segment with its pages; 0.7 kB a page at 128 dimensions in memory."""

    def __init__(self, dimension: int) -> None:
        self._graph = _empty(dimension)
        self._graph.init_index(
            max_elements=FEWEST, M=_LINKS, ef_construction=_BUILD_BREADTH, random_seed=0
        )
        self._waiting: list[Float16[np.ndarray, "_ d"]] = []
        self._pages = 0

    def add(self, pooled: Float16[np.ndarray, "n d"]) -> None:
        """The next pages."""
        self._waiting.append(np.array(pooled))
        self._pages += len(pooled)
        if self._pages < FEWEST:
            return
        room = self._graph.get_max_elements()
        if self._pages > room:
            self._graph.resize_index(max(self._pages, room + room // 2))
        # One thread: two would make the graph random.
        self._graph.add_items(np.concatenate(self._waiting).astype(np.float32), num_threads=1)
        self._waiting = []

    def pieces(self, folder: Path) -> Iterator[UInt8[np.ndarray, "n"]]:
        """The graph as bytes, none for a segment too small for one; a file in `folder` meanwhile.

        Raises OSError when the disk is full.
        """
        if self._pages < FEWEST:
            return
        path = folder / "graph.unfinished"
        self._graph.save_index(str(path))
        if path.stat().st_size != self._graph.index_file_size():  # the library does not look
            raise OSError(errno.ENOSPC, "the disk may be full", str(path))
        with open(path, "rb") as file:
            while data := file.read(_PIECE):
                yield np.frombuffer(data, np.uint8)
        path.unlink()


class PageGraph:
    """The pages of a segment by inner product of their vector with the query's.

    With a graph where the segment has one, else page by page. Raises FormatError for a damaged
    graph, which is read and hashed as a whole before it is used: its library trusts every byte.
    """

    def __init__(self, segment: Segment) -> None:
        self._pooled = segment.arrays["pooled"]
        self._graph = _load(segment) if "graph" in segment.arrays else None

    def nearest(
        self, query: Float32[np.ndarray, "d"], n: int
    ) -> tuple[Int64[np.ndarray, "k"], Float32[np.ndarray, "k"]]:
        """Rows of at most n pages, in no order, and their inner products."""
        n = min(n, len(self._pooled))
        if self._graph is not None and n:
            self._graph.set_ef(n)
            try:
                rows, distance = self._graph.knn_query(query[None], k=n, num_threads=1)
            except RuntimeError:  # fewer than n can be reached from its entry point
                pass
            else:
                return rows[0].astype(np.int64), 1 - distance[0]
        similarity = np.asarray(self._pooled, np.float32) @ query
        best = np.argpartition(-similarity, n - 1)[:n] if n < len(similarity) else slice(None)
        return np.arange(len(similarity))[best], similarity[best]


def pooled_query(query: Float32[np.ndarray, "t d"]) -> Float32[np.ndarray, "d"]:
    """One vector for a query."""
    total: Float32[np.ndarray, "d"] = query.sum(0)
    return total


def _empty(dimension: int) -> Any:
    hnswlib = require("hnswlib", extra="retrieval", purpose="a graph over pages")
    return hnswlib.Index(space="ip", dim=dimension)


def _load(segment: Segment) -> Any:
    if not segment.folder.intact("graph"):
        raise FormatError(
            f"{segment.folder.path}/graph.u8 is damaged: restore it, or search with --graph off"
        )
    pages, dimension = segment.arrays["pooled"].shape
    graph = _empty(dimension)
    # The library reads files only, and a compaction may have removed ours since it was mapped.
    with tempfile.NamedTemporaryFile(prefix="compress3g-graph-") as copy:
        path = segment.folder.path / "graph.u8"
        if not path.exists():
            copy.write(segment.arrays["graph"].tobytes())
            copy.flush()
            path = Path(copy.name)
        graph.load_index(str(path), max_elements=pages)
    if graph.get_current_count() != pages:
        raise FormatError(f"{segment.folder.path}/graph.u8 is not of this segment: restore it")
    return graph
