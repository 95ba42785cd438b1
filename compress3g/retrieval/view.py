"""What a reader sees until it refreshes: mapped segments, living pages, the encoding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from ..errors import FormatError
from .array_folder import ArrayFolder
from .catalog import Catalog, Snapshot
from .config import IndexConfig
from .encoding import Encoding
from .page_graph import PageGraph
from .prune import inverse_page_frequency
from .segment import Segment

_ATTEMPTS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """One generation of the index. Position i is page `page_ids[i]`, segments one after another.

    live: which positions are not deleted, None when all are. starts: first position of each segment
    and their number at the end. damaged: what was left out, on request.
    """

    snapshot: Snapshot
    segments: tuple[Segment, ...]
    starts: Int64[np.ndarray, "ends"]
    page_ids: Int64[np.ndarray, "p"]
    live: Bool[np.ndarray, "p"] | None
    encoding: Encoding | None
    damaged: tuple[str, ...]

    def __len__(self) -> int:
        """Living pages."""
        return len(self.page_ids) if self.live is None else int(self.live.sum())

    @cached_property
    def page_frequency(self) -> Int64[np.ndarray, "k"]:
        """Pages that hold each centroid, deleted ones included."""
        assert self.encoding is not None
        k = self.encoding.codebook.k
        return sum(
            (np.bincount(s.arrays["unique"], minlength=k) for s in self.segments),
            start=np.zeros(k, np.int64),
        )

    @cached_property
    def inverse_page_frequency(self) -> Float32[np.ndarray, "k"]:
        """log of all pages over the pages that hold a centroid, deleted ones included."""
        return inverse_page_frequency(self.page_frequency, len(self.page_ids))

    def positions_of(self, page_ids: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "k"]:
        """Ascending positions of the living pages among `page_ids`."""
        found = [s.rows_of(page_ids) + a for s, a in zip(self.segments, self.starts, strict=False)]
        positions = np.concatenate(found) if found else np.zeros(0, np.int64)
        return positions if self.live is None else positions[self.live[positions]]

    @cached_property
    def _graphs(self) -> list[PageGraph]:
        return [PageGraph(segment) for segment in self.segments]

    def positions_by_graph(self, query: Float32[np.ndarray, "d"], n: int) -> Int64[np.ndarray, "k"]:
        """Ascending positions of the n living pages whose vector has the largest inner product.

        query: one vector. As far as the graphs find them: they are asked for as many more pages as
        are deleted, at most n. Raises FormatError for a damaged graph.
        """
        dead = 0 if self.live is None else len(self.page_ids) - len(self)
        found, similarities = [], []
        for graph, start in zip(self._graphs, self.starts, strict=False):
            rows, similarity = graph.nearest(query, n + min(dead, n))
            found.append(rows + start)
            similarities.append(similarity)
        positions, similarity = np.concatenate(found), np.concatenate(similarities)
        if self.live is not None:
            alive = self.live[positions]
            positions, similarity = positions[alive], similarity[alive]
        if n < len(positions):
            positions = positions[np.argpartition(-similarity, n - 1)[:n]]
        return np.sort(positions)

    def split(
        self, positions: Int64[np.ndarray, "n"]
    ) -> Iterator[tuple[Segment, Int64[np.ndarray, "k"], Int64[np.ndarray, "k"]]]:
        """Segment, rows in it, and which of `positions` they are."""
        owner = np.searchsorted(self.starts, positions, side="right") - 1
        for i in np.unique(owner):
            which = np.flatnonzero(owner == i)
            yield self.segments[i], positions[which] - self.starts[i], which


def load_view(
    folder: Path, catalog: Catalog, config: IndexConfig, *, map: bool, allow_damaged: bool
) -> View:
    """The newest committed state.

    Raises FormatError for damaged segments, unless they are allowed and left out with a warning.
    """
    for attempt in range(_ATTEMPTS):
        snapshot = catalog.snapshot()
        try:
            return view_of(folder, snapshot, config, map=map, allow_damaged=allow_damaged)
        except (FormatError, FileNotFoundError):
            # A compaction may have removed a folder between the catalog's answer and our look.
            same = catalog.snapshot().generation == snapshot.generation
            if same or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def view_of(
    folder: Path, snapshot: Snapshot, config: IndexConfig, *, map: bool, allow_damaged: bool
) -> View:
    """What a snapshot shows. Raises FormatError, also where what it shows is there no more."""
    encoding = None
    if snapshot.codebook is not None:
        name, expected = snapshot.codebook
        arrays = ArrayFolder.open(folder / name, expected=expected, map=False).arrays
        encoding = Encoding.from_arrays(arrays, config)
    segments: list[Segment] = []
    damaged: list[str] = []
    for row in snapshot.segments:
        if row.codebook is None:
            continue
        try:
            segments.append(Segment.open(folder / row.name, expected=row.digest, map=map))
        except FormatError as error:
            if not allow_damaged:
                raise FormatError(
                    f"{error}; the other segments can be searched with --allow-damaged"
                ) from None
            _log.warning("%s; its %d pages are left out", error, row.pages)
            damaged.append(str(error))
    starts = np.concatenate(([0], np.cumsum([len(s) for s in segments]))).astype(np.int64)
    ids = [s.page_ids for s in segments]
    page_ids = ids[0] if len(ids) == 1 else np.concatenate([np.zeros(0, np.int64), *ids])
    live = None
    dead = np.asarray(snapshot.deleted, np.int64)
    if len(dead):
        gone = [s.rows_of(dead) + a for s, a in zip(segments, starts, strict=False)]
        positions = np.concatenate(gone) if gone else dead[:0]
        if len(positions):
            live = np.ones(len(page_ids), bool)
            live[positions] = False
    return View(snapshot, tuple(segments), starts, page_ids, live, encoding, tuple(damaged))
