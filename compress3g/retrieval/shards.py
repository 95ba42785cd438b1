"""Parts of documents as segments of their own, written by one process and committed by another.

A worker writes the vectors of a part to a finished segment that waits for its codebook. Its pages
are numbered from 0, because only the process that commits knows how many pages come before: it
gives them their numbers and puts the segments into the catalog. Until then they are garbage, which
the next writer removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Compress3GError, ConfigError, DocumentError
from .array_folder import ArrayFolderWriter
from .build import Document, config_from_json
from .catalog import Change, DocumentRow, NewSegment
from .config import IndexConfig
from .documents import BATCH, VECTOR_SUFFIXES, encoded, read_vectors
from .encoding import raw_rows
from .intake import BUFFER, COMMIT_SECONDS, COMMIT_VECTORS, signals_to_keep
from .pages import count_pages
from .reduce import reduced
from .segment import SegmentWriter, number_pages
from .vectors import PageVectors, check_vectors
from .writer import Writer, new_name

if TYPE_CHECKING:
    from .encoders.protocol import Encoder

_PART = 16 * BATCH  # pages


@dataclass(frozen=True, slots=True)
class Part:
    """Pages first to stop - 1 of a file, from 0; stop None: to its end."""

    path: str
    first: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The segment of a part, or what is wrong with the part."""

    name: str = ""
    pages: int = 0
    vectors: int = 0
    problem: Exception | None = None


def parts_of(path: str) -> list[Part]:
    """A file in parts that can be encoded apart, with the vectors that the whole would have."""
    try:
        count = count_pages(Path(path))
    except DocumentError:
        count = None  # whoever encodes it will say what is wrong
    if count is None:
        return [Part(path)]
    return [Part(path, i, min(i + _PART, count)) for i in range(0, count, _PART)]


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """What a worker has to know of an index. encoder: its name, empty for vectors."""

    folder: str
    dimension: int
    config: IndexConfig
    encoder: str
    fingerprint: str


def settings_of(folder: Path, meta: Mapping[str, str]) -> ShardSettings:
    """Those of an index; meta: of its catalog."""
    return ShardSettings(
        os.path.abspath(folder), int(meta["dimension"]), config_from_json(meta["config"]),
        meta["encoder"], meta["fingerprint"],
    )  # fmt: skip


class ShardWriter:
    """Writes parts of documents as segments into the folder of an index; commits nothing."""

    def __init__(self, settings: ShardSettings, threads: int | None = None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self._settings = settings
        self._encoder: Encoder | None = None

    def write(self, part: Part) -> Written:
        """The finished segment. Mistakes and full disks are told, not raised."""
        folder = Path(self._settings.folder, new_name("seg"))
        try:
            return self._write(part, folder)
        except (Compress3GError, OSError) as problem:
            shutil.rmtree(folder, ignore_errors=True)
            return Written(problem=problem)

    def _write(self, part: Part, folder: Path) -> Written:
        settings = self._settings
        signals = signals_to_keep(settings.config, settings.encoder)
        segment: SegmentWriter | None = None
        pages = vectors = 0
        for batch in self._batches(part):
            if segment is None:
                segment = SegmentWriter(ArrayFolderWriter(folder))
            segment.append(raw_rows(range(pages, pages + len(batch)), batch, signals))
            pages, vectors = pages + len(batch), vectors + sum(map(len, batch))
        if segment is None:
            return Written()
        segment.finish()
        return Written(folder.name, pages, vectors)

    def _batches(self, part: Part) -> Iterator[list[PageVectors]]:
        """Pages checked and reduced, as many at once as memory should hold."""
        batch: list[PageVectors] = []
        for i, page in enumerate(self._pages(part), part.first + 1):
            where = f"{part.path} page {i}"
            check_vectors(page.vectors, where, dimension=self._settings.dimension)
            try:
                batch.append(reduced(page, self._settings.config, None))
            except Compress3GError as error:
                raise type(error)(f"{where}: {error}") from None
            if sum(map(len, batch)) >= BUFFER:
                yield batch
                batch = []
        if batch:
            yield batch

    def _pages(self, part: Part) -> Iterator[PageVectors]:
        path = Path(part.path)
        if path.suffix.lower() in VECTOR_SUFFIXES:
            return read_vectors(path)
        return encoded(path, self._loaded(), part.first, part.stop)

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            from .encoders import load_encoder

            settings = self._settings
            if not settings.encoder:
                raise ConfigError("the index was built from vectors: add vectors, not pages")
            made = load_encoder(settings.encoder, signals=settings.config.signals)
            if made.fingerprint != settings.fingerprint:
                raise ConfigError(
                    f"a worker has encoder {made.fingerprint!r}, the index"
                    f" {settings.fingerprint!r}: give all machines the same model"
                )
            self._encoder = made
        return self._encoder


class ShardIntake:
    """Takes documents whose parts are written, and commits them in batches, as `Intake` does."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._forget()

    def known(self, path: str) -> DocumentRow | None:
        """The living document of that path; one that waits here is committed first."""
        if any(d.path == path for d in self._documents):
            self.commit()
        found = self._writer.catalog.documents("path = ?", [os.fsencode(path)])
        return found[0] if found else None

    def unchanged(self, document: Document[Any]) -> bool:
        """Whether it is in the index as it is."""
        found = self._writer.catalog.documents("path = ?", [os.fsencode(document.path)])
        return bool(found) and found[0].sha256 == document.sha256

    def add(
        self, document: DocumentRow, pages: Iterable[Written], *, replaces: int | None = None
    ) -> tuple[int, int]:
        """Number of pages and vectors. Raises what went wrong in a part; then nothing remains."""
        parts = list(pages)
        problem = next((p.problem for p in parts if p.problem is not None), None)
        count, vectors = sum(p.pages for p in parts), sum(p.vectors for p in parts)
        if problem is None and count == 0:
            problem = DocumentError(f"{document.path} has no pages")
        if problem is not None:
            self._remove(p.name for p in parts)
            raise problem
        first = 0
        for part in parts:
            if part.pages:
                first += self._take(document.document, part, first)
        self._documents.append(replace(document, pages=count))
        self._replaced += [] if replaces is None else [replaces]
        late = time.monotonic() - self._since > COMMIT_SECONDS
        if late or sum(s.vectors for s in self._segments) >= COMMIT_VECTORS:
            self.commit()
        return count, vectors

    def _take(self, document: int, part: Written, first: int) -> int:
        ids = self._writer.new_pages(part.pages)
        folder = number_pages(self._writer.folder / part.name, ids)
        self._segments.append(NewSegment(part.name, folder.digest, None, part.vectors, ids))
        self._pages += [(page, document, first + i) for i, page in enumerate(ids)]
        return part.pages

    def commit(self) -> None:
        """Makes the documents so far durable."""
        if self._documents:
            self._writer.commit(
                Change(
                    "add",
                    segments=self._segments,
                    documents=self._documents,
                    pages=self._pages,
                    remove_documents=self._replaced,
                )
            )
        self._forget()

    def close(self) -> None:
        """Drops what was not committed."""
        self._remove(s.name for s in self._segments)
        self._forget()

    def _remove(self, names: Iterable[str]) -> None:
        for name in filter(None, names):
            with contextlib.suppress(OSError):
                shutil.rmtree(self._writer.folder / name)

    def _forget(self) -> None:
        self._segments: list[NewSegment] = []
        self._documents: list[DocumentRow] = []
        self._pages: list[tuple[int, int, int]] = []
        self._replaced: list[int] = []
        self._since = time.monotonic()
