"""Documents on their way in: reduced, compressed if there is a codebook, committed in batches."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..errors import DocumentError, VectorError
from .catalog import Change, DocumentRow, NewSegment
from .config import IndexConfig
from .encoding import GIVEN, Encoding, raw_rows, stored_vectors
from .reduce import reduced
from .segment import SegmentWriter
from .vectors import PageVectors, check_vectors
from .writer import Writer

COMMIT_VECTORS = 1 << 22  # vectors after which documents are committed, 1 GiB in half precision
COMMIT_SECONDS = 60.0
BUFFER = 1 << 17  # vectors held before they are written, 64 MiB in float
_DRIFT = 1.25
_FEW, _OUTGROWN = 16, 4  # training vectors a centroid; times the training set
_log = logging.getLogger(__name__)


def signals_to_keep(config: IndexConfig, encoder: str) -> Sequence[str]:
    """Kinds of saliency that stay beside stored vectors; encoder: its name, empty without one."""
    kept: Sequence[str] = config.signals if encoder else (GIVEN,)
    return kept if config.store != "none" else ()


class Intake:
    """Takes documents one after another and commits them in batches.

    A document is in the index with all its pages or not at all. `encoding` is None in pass 1.
    """

    def __init__(
        self, writer: Writer, config: IndexConfig, encoding: Encoding | None, dimension: int
    ) -> None:
        self._writer, self._config, self._encoding = writer, config, encoding
        self._dimension = dimension
        self._signals = signals_to_keep(config, writer.snapshot().meta["encoder"])
        self._codebook = writer.snapshot().codebook
        self._segment: SegmentWriter | None = None
        self._documents: list[DocumentRow] = []
        self._pages: list[tuple[int, int, int]] = []
        self._replaced: list[int] = []
        self._since = 0.0
        self._drift: list[tuple[int, float]] = []

    def add(
        self,
        document: DocumentRow,
        pages: Iterable[PageVectors],
        *,
        replaces: int | None = None,
    ) -> tuple[int, int]:
        """Number of pages and vectors of the document, which is committed later.

        Whatever `pages` raises passes through; then nothing of the document remains.
        """
        if replaces is not None and any(d.document == replaces for d in self._documents):
            self.commit()
        count = vectors = 0
        buffer: list[PageVectors] = []
        numbers: list[tuple[int, int, int]] = []
        alone = False  # the document has its segment for itself
        try:
            for i, page in enumerate(pages):
                where = f"{document.path} page {i + 1}"
                check_vectors(page.vectors, where, dimension=self._dimension)
                page = self._reduced(page, where)
                buffer.append(page)
                count, vectors = count + 1, vectors + len(page)
                if sum(map(len, buffer)) >= BUFFER:
                    if not alone:
                        self.commit()  # so that a failure further on takes nobody else along
                        alone = True
                    numbers += self._write(document.document, buffer, len(numbers))
                    buffer = []
            if count == 0:
                raise DocumentError(f"{document.path} has no pages")
            numbers += self._write(document.document, buffer, len(numbers))
        except BaseException:
            if alone:
                self._abandon()
            raise
        self._documents.append(replace(document, pages=count))
        self._pages += numbers
        self._replaced += [] if replaces is None else [replaces]
        self._since = self._since or time.monotonic()
        assert self._segment is not None
        late = time.monotonic() - self._since > COMMIT_SECONDS
        if late or self._segment.vectors >= COMMIT_VECTORS:
            self.commit()
        return count, vectors

    def _reduced(self, page: PageVectors, where: str) -> PageVectors:
        try:
            return reduced(page, self._config, self._encoding)
        except VectorError as error:
            raise VectorError(f"{where}: {error}") from None

    def known(self, path: str) -> DocumentRow | None:
        """The living document of that path, committed or about to be."""
        pending = [d for d in self._documents if d.path == path]
        if pending:
            return pending[-1]
        found = self._writer.catalog.documents("path = ?", [os.fsencode(path)])
        return found[0] if found else None

    def _write(
        self, document: int, pages: list[PageVectors], first: int
    ) -> list[tuple[int, int, int]]:
        if not pages:
            return []
        if self._segment is None:
            self._segment = SegmentWriter(self._writer.new_folder("seg"))
        ids = self._writer.new_pages(len(pages))
        rows = raw_rows(list(ids), pages, self._signals)
        if self._encoding is not None:
            x = stored_vectors(rows)
            assert x is not None
            self._drift.append((len(x), self._encoding.drift(x[:: max(1, len(x) // 2048)])))
            rows = self._encoding.encode(rows)
        try:
            self._segment.append(rows)
        except BaseException:
            self.close()  # files and bookkeeping no longer agree: nothing pending can be kept
            raise
        return [(page, document, first + i) for i, page in enumerate(ids)]

    def commit(self) -> None:
        """Makes the documents so far durable."""
        if self._segment is None:
            return
        segment, self._segment = self._segment, None
        try:
            folder = segment.finish()
            codebook = None if self._encoding is None else str((self._codebook or ("",))[0])
            new = NewSegment(
                segment.name, folder.digest, codebook, segment.vectors, segment.page_ids
            )
            self._writer.commit(
                Change(
                    "add",
                    segments=[new],
                    documents=self._documents,
                    pages=self._pages,
                    remove_documents=self._replaced,
                )
            )
        except BaseException:
            segment.abandon()
            raise
        finally:
            self._forget()
        self._warn_of_drift()

    def _warn_of_drift(self) -> None:
        drift, self._drift = self._drift, []
        added = sum(n for n, _ in drift)
        if self._encoding is None or not added or self._encoding.growing:
            return
        codebook = self._encoding.codebook
        trained = int(codebook.counts.sum())
        remedy = "`compress3g index retrain`" if self._config.store != "none" else "a new build"
        if trained < _FEW * codebook.k:
            # Trained on hardly more vectors than centroids, it fits these and no others: any page
            # looks far. What counts is how much has come since; said once, when it is four times.
            total = sum(s.vectors for s in self._writer.snapshot().segments)
            if total - added < _OUTGROWN * trained <= total:
                _log.warning(
                    "the codebook was trained on %d vectors, the index has %d: consider %s",
                    trained, total, remedy,
                )  # fmt: skip
        elif (mean := sum(n * d for n, d in drift) / added) > _DRIFT:
            _log.warning(
                "the new pages are %.2f times as far from the codebook as those it was trained on:"
                " consider %s", mean, remedy,
            )  # fmt: skip

    def _abandon(self) -> None:
        if self._segment is not None:
            self._segment.abandon()
            self._segment = None

    def close(self) -> None:
        """Drops what was not committed."""
        self._abandon()
        self._forget()

    def _forget(self) -> None:
        self._documents, self._pages, self._replaced, self._since = [], [], [], 0.0
