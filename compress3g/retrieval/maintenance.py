"""Compaction and verification: what keeps a changed index small and proves it whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError
from .array_folder import ArrayFolder
from .catalog import Catalog, Change, NewSegment, SegmentRow, Snapshot
from .segment import Segment, SegmentWriter, copy_pages
from .writer import Writer

MAX_VECTORS = 1 << 31  # in one segment


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did."""

    segments_before: int
    segments_after: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check looked at and found; `problems` is empty when all is well."""

    segments: int
    pages: int
    vectors: int
    bytes: int
    deep: bool
    problems: tuple[str, ...]


def compact(writer: Writer) -> Compaction:
    """Rewrites the segments without their deleted pages, and few small ones as one.

    Page numbers stay. All of it is one transaction: whoever kills it loses nothing but time.
    """
    snapshot = writer.snapshot()
    rows = [s for s in snapshot.segments if s.codebook is not None]
    if not rows or (len(rows) == 1 and not _deleted_in(writer.catalog, rows[0])):
        writer.commit(Change("compact", purge=True))
        return Compaction(len(rows), len(rows), 0)
    before = after = 0
    added: list[NewSegment] = []
    dead = np.asarray(snapshot.deleted, np.int64)
    for group in _groups(rows):
        segments = [Segment.open(writer.folder / r.name, expected=r.digest) for r in group]
        before += sum(s.folder.bytes for s in segments)
        keep = [~np.isin(s.page_ids, dead) for s in segments]
        if not any(mask.any() for mask in keep):
            continue
        target = SegmentWriter(writer.new_folder("seg"))
        try:
            copy_pages(segments, keep, target)
            folder = target.finish()
        except BaseException:
            target.abandon()
            raise
        after += folder.bytes
        codebook = group[0].codebook
        added.append(
            NewSegment(target.name, folder.digest, codebook, target.vectors, target.page_ids)
        )
    drop = [r.segment for r in rows]
    writer.commit(Change("compact", segments=added, drop_segments=drop, purge=True))
    return Compaction(len(rows), len(added), before - after)


def _deleted_in(catalog: Catalog, row: SegmentRow) -> bool:
    sql = "SELECT 1 FROM pages WHERE segment = ? AND deleted IS NOT NULL LIMIT 1"
    return bool(catalog.query(sql, [row.segment]))


def _groups(rows: list[SegmentRow]) -> Iterator[list[SegmentRow]]:
    group: list[SegmentRow] = []
    for row in rows:
        if group and sum(r.vectors for r in group) + row.vectors > MAX_VECTORS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def verify(folder: Path, catalog: Catalog, *, deep: bool = False) -> Verification:
    """Checks catalog, headers, sizes, offsets, codes, and that each live page is in one segment.

    `deep` also reads every byte and compares the checksums. Finds problems, raises none.
    """
    problems = catalog.integrity()
    if problems:
        return Verification(0, 0, 0, 0, deep, tuple(problems))
    snapshot = catalog.snapshot()
    size, centroids = 0, None
    if snapshot.codebook is not None:
        name, expected = snapshot.codebook
        try:
            codebook = ArrayFolder.open(folder / name, expected=expected)
            size += codebook.bytes
            centroids = len(codebook.arrays["centroids"])
            problems += [
                f"{folder / name}/{array}: bytes {a} to {b - 1} are damaged"
                for array, a, b in (codebook.damaged() if deep else ())
            ]
        except (FormatError, OSError, KeyError) as error:
            problems.append(str(error))
    for row in snapshot.segments:
        try:
            segment = Segment.open(folder / row.name, expected=row.digest)
            size += segment.folder.bytes
            problems += list(segment.damage()) if deep else []
            problems += list(segment.problems(centroids if row.codebook else None))
            problems += _pages_missing(catalog, row, segment)
        except (FormatError, OSError) as error:
            pages = catalog.query(
                "SELECT min(page), max(page) FROM pages WHERE segment = ?", [row.segment]
            )
            problems.append(f"{error} (pages {pages[0][0]} to {pages[0][1]})")
    problems += _documents_wrong(catalog)
    live = catalog.query("SELECT count(*) FROM pages WHERE deleted IS NULL")[0][0]
    vectors = sum(row.vectors for row in snapshot.segments)
    return Verification(len(snapshot.segments), live, vectors, size, deep, tuple(problems))


def _pages_missing(catalog: Catalog, row: SegmentRow, segment: Segment) -> Iterator[str]:
    sql = "SELECT page FROM pages WHERE segment = ? AND deleted IS NULL ORDER BY page"
    pages = np.asarray([p for (p,) in catalog.query(sql, [row.segment])], np.int64)
    lost = pages[~np.isin(pages, segment.page_ids)]
    if len(lost):
        yield f"{segment.folder.path}: page {lost[0]} is in the catalog, not in the segment"
    if len(segment) != row.pages:
        yield f"{segment.folder.path}: {len(segment)} pages, the catalog says {row.pages}"


def _documents_wrong(catalog: Catalog) -> Iterator[str]:
    sql = (
        "SELECT d.document, d.pages, count(p.page) FROM documents d LEFT JOIN pages p"
        " ON p.document = d.document AND p.deleted IS NULL"
        " AND p.segment IN (SELECT segment FROM segments)"
        " WHERE d.deleted IS NULL GROUP BY d.document HAVING count(p.page) != d.pages"
    )
    for document, pages, found in catalog.query(sql):
        yield f"document {document} has {found} of its {pages} pages in segments"


def live_mask(snapshot: Snapshot, segment: Segment) -> np.ndarray | None:
    """Which pages of a segment are not deleted; None when all live."""
    dead = np.asarray(snapshot.deleted, np.int64)
    rows = segment.rows_of(dead) if len(dead) else dead
    if not len(rows):
        return None
    mask = np.ones(len(segment), bool)
    mask[rows] = False
    return mask
