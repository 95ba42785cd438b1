"""One segment: the compressed pages of a commit, as ragged arrays in an immutable folder.

| array | rows | what |
| --- | --- | --- |
| page_ids i64 | pages | numbers in the catalog, ascending |
| offsets i64 | pages + 1 | first vector of each page |
| unique_offsets i64, unique | pages + 1, codes | the sorted distinct codes of each page |
| codes, residual u8, inv_norm f16 | vectors | centroid, residual bytes, 1 / length (residual.py) |
| bits u64, scale f16 | vectors | sign bits of the binary mode |
| store f16, or i8 with store_scale f32 | vectors | the originals, for exact scores |
| places_offsets i64, places u8 | pages + 1, bytes | where the patches are, packed (places.py) |
| pooled f16; graph u8 | pages; bytes | a vector a page, and a graph over them (page_graph.py) |
| grid i16, kind u8, saliency f16 | vectors | the same as numbers, special or not, attention |

A segment that waits for its codebook has `store` and `grid` and no codes. One whose codebook is to
be trained again, once the index has grown, has `store` in bytes whatever is configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Int64

from ..errors import FormatError
from .array_folder import Array, ArrayFolder, ArrayFolderWriter, replace_array
from .page_graph import GraphBuilder

_STREAMS = ("unique", "places")  # ragged in their own way, each with offsets
_PER_PAGE = ("page_ids", "offsets", "pooled", *(f"{name}_offsets" for name in _STREAMS))
_WHOLE = ("graph",)  # of the segment, not of any page
_OTHER = (*_PER_PAGE, *_STREAMS, *_WHOLE)  # than a row per vector
CHUNK = 1 << 17  # vectors copied at a time


@dataclass(frozen=True, slots=True, eq=False)
class PageRows:
    """Consecutive pages on their way into a segment.

    page_ids, lengths: i64 [P]. vectors: arrays with a row per vector. streams: values and lengths
    [P] of what has another number of rows per page. pooled: f16 [P, D] for a graph over pages.
    """

    page_ids: Int64[np.ndarray, "p"]
    lengths: Int64[np.ndarray, "p"]
    vectors: Mapping[str, Array]
    streams: Mapping[str, tuple[Array, Int64[np.ndarray, "p"]]] = field(default_factory=dict)
    pooled: Float16[np.ndarray, "p d"] | None = None


class SegmentWriter:
    """Appends pages, in ascending page number, to a segment that is not committed yet."""

    def __init__(self, folder: ArrayFolderWriter) -> None:
        self._folder = folder
        self._ends: dict[str, int] = {}
        self._graph: GraphBuilder | None = None
        self.page_ids: list[int] = []
        self.name = folder.folder.name

    @property
    def vectors(self) -> int:
        """Vectors so far."""
        return self._ends.get("offsets", 0)

    def append(self, rows: PageRows) -> None:
        """Writes pages through to the files."""
        self._folder.append("page_ids", rows.page_ids)
        self.page_ids.extend(rows.page_ids.tolist())
        self._append_offsets("offsets", rows.lengths)
        for name, array in rows.vectors.items():
            self._folder.append(name, array)
        for name, (values, lengths) in rows.streams.items():
            self._append_offsets(f"{name}_offsets", lengths)
            self._folder.append(name, values)
        if rows.pooled is not None:
            self._folder.append("pooled", rows.pooled)
            if self._graph is None:
                self._graph = GraphBuilder(rows.pooled.shape[1])
            self._graph.add(rows.pooled)

    def _append_offsets(self, name: str, lengths: Int64[np.ndarray, "p"]) -> None:
        if name not in self._ends:
            self._folder.append(name, np.zeros(1, np.int64))
        ends = self._ends.get(name, 0) + np.cumsum(lengths, dtype=np.int64)
        self._folder.append(name, ends)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends.get(name, 0)

    def finish(self, **facts: Any) -> ArrayFolder:
        """The files are on disk; the segment is garbage until a change names it."""
        if self._graph is not None:
            for piece in self._graph.pieces(self._folder.folder):
                self._folder.append("graph", piece)
        return self._folder.finish({"kind": "segment", **facts})

    def abandon(self) -> None:
        """Removes the files."""
        self._folder.abandon()


def number_pages(folder: Path, page_ids: Sequence[int]) -> ArrayFolder:
    """A finished segment that is not committed yet, with these page numbers instead of its own."""
    return replace_array(folder, "page_ids", np.asarray(page_ids, np.int64))


class Segment:
    """A committed segment, mapped.

    Raises FormatError when its files are not what was written, as far as sizes tell.
    """

    def __init__(self, folder: ArrayFolder) -> None:
        self.folder, self.arrays = folder, folder.arrays
        missing = [n for n in ("page_ids", "offsets") if n not in self.arrays]
        if missing:
            raise FormatError(f"{folder.path}: no array {missing[0]}: this is no segment")
        self.page_ids, self.offsets = self.arrays["page_ids"], self.arrays["offsets"]

    @classmethod
    def open(cls, path: Path, *, expected: str | None = None, map: bool = True) -> Segment:
        """The segment in a folder; `expected` is the catalog's digest of its header."""
        return cls(ArrayFolder.open(path, expected=expected, map=map))

    def __len__(self) -> int:
        return len(self.page_ids)

    def rows_of(self, page_ids: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "k"]:
        """Rows of those page numbers that are in this segment, ascending."""
        found = np.searchsorted(self.page_ids, page_ids)
        found = found[found < len(self)] if len(page_ids) else found
        rows = np.unique(found)
        return rows[np.isin(self.page_ids[rows], page_ids)]

    def take(self, first: int, last: int) -> PageRows:
        """Pages first ... last - 1."""
        a, b = int(self.offsets[first]), int(self.offsets[last])
        per_vector = {name: array[a:b] for name, array in self.arrays.items() if name not in _OTHER}
        streams = {}
        for name in _STREAMS:
            if name in self.arrays:
                bounds = self.arrays[f"{name}_offsets"][first : last + 1]
                streams[name] = self.arrays[name][bounds[0] : bounds[-1]], np.diff(bounds)
        pooled = self.arrays["pooled"][first:last] if "pooled" in self.arrays else None
        lengths = np.diff(self.offsets[first : last + 1])
        return PageRows(self.page_ids[first:last], lengths, per_vector, streams, pooled)

    def chunks(self, first: int, last: int) -> Iterator[PageRows]:
        """Pages first ... last - 1 in pieces of about CHUNK vectors.

        What was read is released after each piece: a pass over an index of any size stays small.
        """
        while first < last:
            end = int(self.offsets[first]) + CHUNK
            stop = int(np.searchsorted(self.offsets, end, side="right")) - 1
            stop = min(max(stop, first + 1), last)
            yield self.take(first, stop)
            self.folder.release()
            first = stop

    def problems(self, centroids: int | None) -> Iterator[str]:
        """What is wrong with the structure: offsets, order of pages, codes beyond the codebook."""
        path = self.folder.path
        ids = self.page_ids
        if len(ids) > 1 and not (np.diff(ids) > 0).all():
            yield f"{path}/page_ids.i64: not ascending{self.pages_between(0, len(ids))}"
        yield from self._problems_of_offsets("offsets", self._vector_rows())
        for name in _STREAMS:
            if name in self.arrays:
                yield from self._problems_of_offsets(f"{name}_offsets", len(self.arrays[name]))
        if "pooled" in self.arrays and len(self.arrays["pooled"]) != len(ids):
            yield f"{path}/pooled.f16: {len(self.arrays['pooled'])} rows for {len(ids)} pages"
        for name in ("codes", "unique"):
            codes = self.arrays.get(name)
            if codes is None or centroids is None or not len(codes):
                continue
            bad = np.flatnonzero(codes >= centroids)
            if len(bad):
                row = self._page_of(name, int(bad[0]))
                yield (
                    f"{path}/{name}.{codes.dtype}: code {codes[bad[0]]} of {centroids}"
                    f" centroids{self.pages_between(row, row + 1)}"
                )

    def _problems_of_offsets(self, name: str, rows: int) -> Iterator[str]:
        offsets = self.arrays.get(name, np.zeros(0, np.int64))
        steps = np.diff(offsets)
        if len(offsets) != len(self) + 1 or offsets[0] != 0 or offsets[-1] != rows:
            yield f"{self.folder.path}/{name}.i64: does not span {rows} rows"
        elif (steps < 0).any():
            row = int(np.flatnonzero(steps < 0)[0])
            yield (
                f"{self.folder.path}/{name}.i64: not ascending{self.pages_between(row, row + 1)}"
            )

    def _vector_rows(self) -> int:
        names = [n for n in self.arrays if n not in _OTHER]
        return len(self.arrays[names[0]]) if names else int(self.offsets[-1])

    def _page_of(self, name: str, row: int) -> int:
        offsets = self.arrays[f"{name}_offsets" if name in _STREAMS else "offsets"]
        return max(int(np.searchsorted(offsets, row, side="right")) - 1, 0)

    def damage(self) -> Iterator[str]:
        """Every damaged block, with file and page numbers; reads and hashes the whole segment."""
        for name, first, last in self.folder.damaged():
            header = self.folder.headers[name]
            width = max(header.bytes // max(header.shape[0], 1), 1)
            rows = (first // width, -(-last // width))
            if name in _WHOLE:
                pages = (0, len(self))
            elif name in _PER_PAGE:
                pages = (rows[0], min(rows[1], len(self)))
            else:
                pages = (self._page_of(name, rows[0]), self._page_of(name, rows[1] - 1) + 1)
            yield (
                f"{self.folder.path}/{name}.{header.dtype}: bytes {first} to {last - 1} are"
                f" damaged{self.pages_between(*pages)}"
            )

    def pages_between(self, first: int, last: int) -> str:
        """The page numbers of rows first ... last - 1, for a message."""
        ids = self.page_ids[max(first, 0) : min(max(last, first + 1), len(self))]
        return f" (pages {ids[0]} to {ids[-1]})" if len(ids) else ""


def copy_pages(
    segments: Sequence[Segment], keep: Sequence[Bool[np.ndarray, "_"]], target: SegmentWriter
) -> None:
    """Copies the kept pages of all segments in ascending page number, CHUNK vectors at a time."""
    rows = [np.flatnonzero(mask) for mask in keep]
    ids = np.concatenate([s.page_ids[r] for s, r in zip(segments, rows, strict=True)])
    source = np.concatenate([np.full(len(r), i) for i, r in enumerate(rows)])
    row = np.concatenate(rows)
    order = np.argsort(ids, kind="stable")
    source, row = source[order], row[order]
    # A run is a stretch of neighbours of one segment: copied without looking at single pages.
    breaks = np.flatnonzero((np.diff(source) != 0) | (np.diff(row) != 1)) + 1
    edges = [0, *breaks.tolist(), len(row)]
    for a, b in pairwise(edges):
        if b > a:
            for piece in segments[source[a]].chunks(int(row[a]), int(row[b - 1]) + 1):
                target.append(piece)
